"""One module per service: its Settings, then its deploy in three stages: install, configure, run."""
