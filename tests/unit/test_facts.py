"""Facts that answer for many things at once: what hosts really said, and questions that can be asked anywhere, asked."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import threading
import time

import pytest

from facts.answers import Holds, fetch, knock
from facts.packages import Apt, AptState, Installed
from facts.units import Units
from groundwork.roles import ORDER
from tests.unit.conftest import make_topology

# A bookworm host (systemd 252).
UNITS = """\
Names=chrony.service chronyd.service
LoadState=loaded
ActiveState=inactive
FragmentPath=/lib/systemd/system/chrony.service
DropInPaths=
UnitFileState=enabled
ActiveEnterTimestamp=
NeedDaemonReload=no

Names=ssh.service sshd.service
LoadState=loaded
ActiveState=active
FragmentPath=/lib/systemd/system/ssh.service
DropInPaths=
UnitFileState=enabled
ActiveEnterTimestamp=Tue 2026-11-24 02:54:21.991759 UTC
NeedDaemonReload=no

Names=app.service
LoadState=loaded
ActiveState=active
FragmentPath=/etc/systemd/system/app.service
DropInPaths=
UnitFileState=enabled
ActiveEnterTimestamp=Tue 2026-11-24 02:55:29.655596 UTC
NeedDaemonReload=no

Names=fail2ban.service
LoadState=loaded
ActiveState=active
FragmentPath=/lib/systemd/system/fail2ban.service
DropInPaths=
UnitFileState=enabled
ActiveEnterTimestamp=Tue 2026-11-24 02:54:35.408411 UTC
NeedDaemonReload=no

Names=no-such.service
LoadState=not-found
ActiveState=inactive
FragmentPath=
DropInPaths=
UnitFileState=
ActiveEnterTimestamp=
NeedDaemonReload=no
S|1795490882.641232402|1795490882.641232402|/run/groundwork/fail2ban.service
S|1795488873.169147646|1795488873.169147646|/etc/chrony/sources.d
S|1777976816.000000000|1795455724.382702246|/etc/ssh/sshd_config
S|1795488929.013466653|1795488929.013466653|/srv/app/current
F|1795488873.1691476460|/etc/chrony/sources.d|
F|1795488869.5953767270|/etc/chrony/sources.d|README
F|1795488873.1691476460|/etc/chrony/sources.d|groundwork.sources
F|1795455724.3827022460|/etc/ssh/sshd_config|
F|1795488929.0091500010|/srv/app/current|
F|1795488928.9371499980|/srv/app/current|requirements.txt
F|1795488868.8091474620|/lib/systemd/system/chrony.service|
F|1795455714.4197490650|/lib/systemd/system/ssh.service|
F|1795488925.8051498660|/etc/systemd/system/app.service|
F|1795488869.0052003200|/lib/systemd/system/fail2ban.service|
"""
READS = {
    "chrony.service": ["/etc/chrony/sources.d"],
    "sshd.service": ["/etc/ssh/sshd_config"],
    "app.service": ["/srv/app/current"],
    "fail2ban.service": [],
    "no-such.service": ["/no/such"],
}


def units(output: str = UNITS):
    fact = Units()
    fact.command(READS)
    return fact.process(output.splitlines())


def test_all_units_by_one_systemctl_and_one_find():
    command = Units().command(READS)
    assert [command.count(word) for word in ("systemctl", "find ", "stat ")] == [1, 1, 1]
    found = units()
    assert set(found) == set(READS)
    assert [(name, unit.loaded, unit.active, unit.enabled, unit.stale) for name, unit in found.items()] == [
        ("chrony.service", True, "inactive", "enabled", True),
        ("sshd.service", True, "active", "enabled", False),  # by another of its names
        ("app.service", True, "active", "enabled", False),
        ("fail2ban.service", True, "active", "enabled", False),
        ("no-such.service", False, "inactive", "", False),
    ]
    assert found["sshd.service"].started == 1795488861.991759
    # A reload that worked counts as a start; a link by itself, whatever it leads to.
    assert found["fail2ban.service"].started == 1795490882.641232402
    assert (found["app.service"].newest, found["app.service"].newest_path) == (1795488929.013466653, "/srv/app/current")
    assert found["chrony.service"].newest_path.startswith("/etc/chrony/sources.d")


def test_what_is_changed_makes_its_own_unit_stale_and_no_other():
    later = "F|1795499999.0000000000|/srv/app/current|new.py\n"
    assert [name for name, unit in units(UNITS + later).items() if unit.stale and unit.running] == ["app.service"]
    assert units(UNITS + later)["app.service"].newest_path == "/srv/app/current/new.py"
    own = "F|1795499999.0000000000|/etc/systemd/system/app.service.d|own.conf\n"
    app = units(UNITS + own)["app.service"]
    assert app.stale and app.newest_path == "/etc/systemd/system/app.service.d/own.conf"
    # Of a unit that is asked for more than this one wants to know.
    app = units(UNITS + later)["app.service"]
    assert app.stale and app.reading(["/srv/app/current"]).stale and not app.reading([]).stale


def test_what_apt_needs_is_one_question_for_all_roles():
    said = "H|mongodb-org\nH|mongodb-org-server\nA|61\nN\nP"
    assert Apt().process(said.splitlines()) == AptState(
        held={"mongodb-org", "mongodb-org-server"}, lists_age=61, sources_newer=True, upgraded=True
    )
    said = "installed|curl|7.88.1-10+deb12u15\nconfig-files|nginx|1.22.1-9\ninstalled|mongodb-org-server|6.0.5"
    assert Installed().process(said.splitlines()) == {"curl": "7.88.1-10+deb12u15", "mongodb-org-server": "6.0.5"}


@pytest.mark.parametrize("line, broken", [
    ("install|ok|installed|curl", False), ("deinstall|ok|config-files|nginx", False), ("hold|ok|installed|curl", False),
    ("unknown|ok|not-installed|x", False), ("install|ok|half-configured|curl", True), ("install|reinstreq|half-installed|curl", True),
    ("install|ok|triggers-pending|man-db", True), ("install|reinstreq|installed|curl", True),
])  # fmt: skip
def test_what_dpkg_left_half_done_is_seen(tmp_path, line, broken):
    query = tmp_path / "dpkg-query"
    query.write_text(f"#!/bin/sh\necho 'install|ok|installed|bash'; echo '{line}'\n")
    query.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    said = subprocess.run(["sh", "-c", Apt().command()], env=path, capture_output=True, text=True, check=True).stdout
    found = Apt().process(said.splitlines())
    assert (found.broken, found.held) == (broken, {"curl"} if line.startswith("hold") else set())


def holds(check: str) -> bool:
    fact = Holds()
    done = subprocess.run(["sh", "-c", fact.command(check)], input="", capture_output=True, text=True)
    assert done.returncode == 0, "a batch takes no answer of a question that fails"
    return fact.process(done.stdout.splitlines())


class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 503)
        self.end_headers()
        self.wfile.write(b"I am well")

    def log_message(self, *_):
        pass


def test_what_answers_is_told_from_what_does_not():
    with http.server.HTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_port
        try:
            assert holds(fetch(f"http://127.0.0.1:{port}/health"))
            assert holds(fetch(f"http://127.0.0.1:{port}/health", contains="well"))
            assert not holds(fetch(f"http://127.0.0.1:{port}/health", contains="ill"))
            assert not holds(fetch(f"http://127.0.0.1:{port}/other"))
            assert holds(knock(port, "127.0.0.1"))
        finally:
            server.shutdown()
    assert not holds(knock(port, "127.0.0.1")) and not holds(fetch(f"http://127.0.0.1:{port}/health"))


def test_who_takes_a_connection_and_says_nothing_holds_up_the_batch_for_two_seconds():
    with socket.create_server(("127.0.0.1", 0)) as server:
        began = time.monotonic()
        assert not holds(fetch(f"http://127.0.0.1:{server.getsockname()[1]}/"))
        assert time.monotonic() - began < 4


def test_a_check_that_reads_or_ends_the_shell_does_not_end_the_question():
    assert holds("! read -r line") and not holds("exit 3") and not holds("echo yes; false")


ALL = {
    "link_endpoint": "203.0.113.5",
    "mongodb_users": [{"name": "grid_user", "database": "urban_grid_ai"}],
    "app_source": "examples/app",
    "inference_source": "examples/forecast",
    "training_source": "examples/forecast",
    "training_jobs": [{"name": "forecast", "command": ["python", "-m", "forecast.train"]}],
    "nginx_frontend": "examples/frontend",
}


@pytest.fixture
def asked(monkeypatch):
    """Questions that were asked of a host with every role: (fact, its command)."""
    from operations import declared

    here = make_topology({"one": (list(ORDER[1:]), ALL)}).hosts["one"]
    questions: list[tuple[type, str]] = []

    class Host:
        def get_fact(self, fact, **given):
            questions.append((fact, fact().command(**given)))

    monkeypatch.setattr(declared, "host", Host())
    monkeypatch.setattr(declared, "current", lambda: here)
    return here, questions


def test_whichever_role_asks_for_files_and_units_the_question_is_the_same(asked):
    from operations import declared

    here, questions = asked
    for role in here.roles:
        settings = here.settings(here.topology.roles[role])
        declared.paths(row.path for row in settings.files(here))
        units = declared.units({item.unit: item.reads for item in settings.services(here)})
        assert set(units) == {item.unit for item in settings.services(here)}
    assert len(here.roles) == len(ORDER) > 8
    assert len({command for fact, command in questions if fact is Units}) == 1
    assert len({command for _, command in questions}) == 2
    # What no role declares is asked for by itself.
    declared.units({"somebody-elses.service": ["/etc/other"]})
    declared.paths(["/etc/other"])
    assert len({command for _, command in questions}) == 4
