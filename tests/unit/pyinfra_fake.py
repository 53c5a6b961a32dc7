"""Run pyinfra's own command line on hosts that only pretend: its @fake connector."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SYSTEMS = {"jammy": "ubuntu", "noble": "ubuntu", "bookworm": "debian", "trixie": "debian"}

ALL_ROLES = """
    link_endpoint = "203.0.113.5"
    mongodb_users = [{"name": "grid_user", "database": "urban_grid_ai"}]
    app_source = "examples/app"
    inference_source = training_source = "examples/forecast"
    training_jobs = [{"name": "forecast", "command": ["python", "-m", "forecast.train"], "schedule": "daily"}]
    nginx_frontend = "examples/frontend"
"""

INVENTORY = '''
_machine = """distribution={distribution}
codename={codename}
architecture=amd64
cores=2
memory=4194304
container=none
card=2684
disk_free=20971520{more}"""
_host = ("@fake/one", {{
    "private_address": "10.0.0.5",
    "base_hostname": "one",
    "fake_responses": {{
        "os-release": _machine.splitlines(),
        # Tools that are not installed yet.
        "command -v": {{"success": False}},
    }},
    **{data!r},
}})
{groups}
'''


def inventory(directory: Path, groups: list[str], codename: str = "bookworm", **data: object) -> Path:
    """Write an inventory with one fake host, and give its path."""
    path = directory / "try_out.py"
    lines = "\n".join(f"{group} = [_host]" for group in groups)
    more = "\nssh_socket=yes\nbooting=yes" if codename == "noble" else ""
    path.write_text(
        INVENTORY.format(distribution=SYSTEMS[codename], codename=codename, data=data, groups=lines, more=more)
    )
    return path


def group_data(directory: Path, name: str, text: str) -> Path:
    """Write a file of group data beside an inventory."""
    (directory / "group_data").mkdir(exist_ok=True)
    path = directory / "group_data" / f"{name}.py"
    path.write_text(textwrap.dedent(text))
    return path


def run(
    path: Path, *arguments: str, secrets: bool = True, directory: Path = ROOT, more: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    """`pyinfra INVENTORY ARGUMENTS`, with an environment that answers for every secret, and for more."""
    names = ("MONGODB_ADMIN", "MONGODB_GRID_USER", "REDIS_APP", "REDIS_ADMIN", "LINK_FAKE_ONE") if secrets else ()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GROUNDWORK_")}
    environment |= {f"GROUNDWORK_SECRET_{name}": f"pa:ss/w@rd-{name.lower()}" for name in names}
    environment |= {"PYINFRA_FAKE_DELAY": "0", "PYINFRA_FAKE_DELAY_JITTER": "0", "PYINFRA_PROGRESS": "off", "HOME": str(path.parent)}
    environment |= more or {}
    # The user's own cache: else each run would fetch uv's program again.
    environment["XDG_CACHE_HOME"] = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return subprocess.run(
        [sys.executable, "-m", "pyinfra", str(path), *arguments],
        cwd=directory, env=environment, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip
