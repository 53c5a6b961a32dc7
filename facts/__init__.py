"""Facts that pyinfra lacks: each answers for many things in one command."""
