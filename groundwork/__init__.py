"""Controller code of Groundwork: settings, topology, secrets, preflight."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The repository."""
