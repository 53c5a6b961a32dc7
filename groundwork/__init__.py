"""Controller code of Groundwork: settings, topology, secrets, preflight."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The repository."""

AGENT = os.environ.get("SSH_AUTH_SOCK")
"""The ssh agent's socket: pyinfra puts another one in its place while it connects to a host that has an IdentityAgent."""
