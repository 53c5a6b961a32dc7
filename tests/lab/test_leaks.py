"""No secret is where somebody could read it: planted values, searched for everywhere."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from urllib.parse import quote

import pytest
from tests.lab.conftest import ROOT, Lab

from groundwork.secrets import KEPT

# Awkward on purpose: what needs quoting in a shell, a URI, YAML, JSON and an environment file.
PLANTED = {
    "MONGODB_ADMIN": "leak-A1 '\"$x\\:@/%#&",
    "MONGODB_GRID_USER": "leak-B2 '\"$x\\:@/%#&",
    "REDIS_APP": "leak-C3 '\"$x\\:@/%#&",
    "REDIS_ADMIN": "leak-D4 '\"$x\\:@/%#&",
    "APP_SENTRY_DSN": "leak-E5 '\"$x\\:@/%#&",
}
MARKS = [value.split()[0] for value in PLANTED.values()]
ENVIRONMENT = {f"GROUNDWORK_SECRET_{name}": value for name, value in PLANTED.items()}

INVENTORY = """
from groundwork.secrets import Secret
from lab import lab_host
from tests.lab.stack import STACK

_host = lab_host(
    "leaks",
    "10.87.0.12",
    **STACK,
    app_environment={"SENTRY_DSN": Secret("app/sentry_dsn")},
)
mongodb = [_host]
redis = [_host]
chromadb = [_host]
app = [_host]
nginx = [_host]
"""


def _marks_in(text: str) -> list[str]:
    """Planted values in a text: as they are, quoted for a URI, or in Base64."""
    found = []
    for value in PLANTED.values():
        mark = value.split()[0]
        forms = [mark, quote(value, safe=""), *_base64(value)]
        found += [form for form in forms if form in text]
    return found


def _base64(value: str) -> list[str]:
    """What a value looks like inside Base64, at each of the three alignments."""
    return [base64.b64encode(b" " * shift + value.encode()).decode()[4 if shift else 0 : -4] for shift in range(3)]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A host deployed with the planted secrets, everything printed kept, `ps` sampled all the while."""
    stack = Lab.made(tmp_path_factory.mktemp("leaks") / "leaks_lab.py", INVENTORY)
    with stack.sampled("leaks") as samples:
        printed = {"deploy -y -vvv --diff --debug": _pyinfra(stack.inventory, "-y", "-vvv", "--diff", "--debug")}
    yield stack, printed, samples


def _pyinfra(inventory: str, *arguments: str, what: str = "deploy.py") -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pyinfra", inventory, what, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=1800, stdin=subprocess.DEVNULL,
        env={**os.environ, **ENVIRONMENT, "PYINFRA_PROGRESS": "off"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def test_the_search_finds_what_is_there(planted):
    """A search that finds nothing anywhere would be no test: the one place where they belong is found."""
    stack, _, samples = planted
    environment = stack.ssh("leaks", "sudo cat /etc/app/environment").stdout
    assert "leak-E5" in environment and quote(PLANTED["MONGODB_GRID_USER"], safe="") in environment
    assert len(samples) > 1000


def test_awkward_passwords_work(planted):
    stack, _, _ = planted
    ready = stack.ssh("leaks", "curl -sk https://127.0.0.1/ready -o /dev/null -w '%{http_code}'").stdout
    assert ready == "200"


def test_nothing_that_is_printed_holds_a_secret(planted):
    stack, printed, _ = planted
    printed = dict(printed)
    printed["deploy again, -vvv"] = _pyinfra(stack.inventory, "-y", "-vvv", "--diff", "--debug")
    printed["--dry --json"] = _pyinfra(stack.inventory, "--dry", "--json")
    printed["-y --json"] = _pyinfra(stack.inventory, "-y", "--json")
    printed["--debug-operations"] = _pyinfra(stack.inventory, "--debug-operations")
    printed["debug-inventory"] = _pyinfra(stack.inventory, what="debug-inventory")
    for name, text in printed.items():
        assert len(text) > 200, name
        assert _marks_in(text) == [], name


def test_no_process_ever_had_a_secret_in_its_arguments(planted):
    _, _, samples = planted
    # The application's own environment is where its secrets belong.
    own = re.compile(r"^(MONGO_URI|REDIS_URL|SENTRY_DSN)=")
    assert _marks_in("".join(line for line in samples if not own.match(line))) == []


def test_in_files_the_secrets_are_where_they_belong_and_nowhere_else(planted):
    """Those that root alone can read among them: the application's, and what lets the next run in."""
    stack, _, _ = planted
    # Not the marks themselves: the journal has what sudo is told.
    search = "find / -xdev -type f -newer /etc/machine-id -exec grep -al 'leak-[A-E][1-5]' {} +"
    done = stack.ssh("leaks", f"sudo {search}", check=False)
    assert sorted(done.stdout.split()) == ["/etc/app/environment", f"{KEPT}/mongodb-admin", f"{KEPT}/redis-admin"]


@pytest.mark.parametrize(
    "where",
    [
        "journalctl --no-pager -o export",
        "cat /var/log/*.log /var/log/*/*.log /var/log/*/*.json",
        "cat /root/.bash_history /root/.mongodb/mongosh/* /home/*/.bash_history /home/*/.mongodb/mongosh/*",
        "find /tmp /var/tmp /run/groundwork -xdev -type f -exec cat {} +",
        "find / -xdev -type f -perm -o+r -not -path '/proc/*' -newer /etc/machine-id -size -2M -exec cat {} +",
    ],
)
def test_no_place_on_the_host_holds_a_secret(planted, where):
    stack, _, _ = planted
    done = stack.ssh("leaks", f"sudo sh -c {json.dumps(where)} 2>/dev/null | grep -aoE {json.dumps('|'.join(MARKS))} | sort | uniq -c", check=False)
    assert done.stdout == "", where
