"""`make demo`: a lab host, the whole stack on it, verified; then where to look."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from lab import available

ROOT = Path(__file__).resolve().parent.parent
INVENTORY = "inventories/lab.py"
ADDRESS = "10.87.0.11"

GOODBYE = f"""
What is running, on the lab host demo ({ADDRESS}), which only this machine and its lab reach:

  https://{ADDRESS}/            the front end (its certificate is self-signed: curl -k)
  MongoDB, Redis, ChromaDB       for the application; the firewall lets nobody else in
  Docker                         with no container yet

Try it:
  curl -k https://{ADDRESS}/ready
  curl -k https://{ADDRESS}/items -H 'Content-Type: application/json' \\
       -d '{{"name": "meter 7", "text": "the meter in the cellar"}}'
  curl -k 'https://{ADDRESS}/search?q=cellar'

Look around:
  .venv/bin/python -m lab ssh demo sudo journalctl -u app -n 20
  .venv/bin/python -m lab ssh demo                     # a shell, sudo works; there,
      mongosh 'mongodb://grid_user@127.0.0.1/urban_grid_ai?authSource=urban_grid_ai'
                                                       # asks for the password, which is:
  .venv/bin/python -m groundwork.secrets --inventory {INVENTORY} show mongodb/grid_user
  make demo                                            # again: changes nothing

Take it down:
  make demo-down
"""


def main() -> int:
    """Boot, deploy, verify, tell. Gives the exit status."""
    if why := available():
        print(f"The demo needs a lab host, and none can run here: {why}", file=sys.stderr)
        return 2
    started = time.monotonic()
    steps = [
        ("a lab host", ["-m", "lab", "up", INVENTORY]),
        ("the stack, by `pyinfra -y inventories/lab.py deploy.py`", ["-m", "pyinfra", "-y", INVENTORY, "deploy.py"]),
        (
            "is it so? `pytest tests/host --inventory inventories/lab.py`",
            ["-m", "pytest", "-q", "tests/host", "--inventory", INVENTORY, "-m", "not slow"],
        ),
    ]
    for number, (title, command) in enumerate(steps, start=1):
        print(f"\n==> {number}/{len(steps)} {title}", flush=True)
        if code := subprocess.run([sys.executable, *command], cwd=ROOT).returncode:
            print(f"\nmake demo stopped at step {number}: {title}. It is safe to run again.", file=sys.stderr)
            return code
    print(GOODBYE)
    print(f"Done in {time.monotonic() - started:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
