"""Controller code of Groundwork: settings, topology, secrets, preflight."""
