"""operations.files and its fact: the commands are run for real, in a directory of the test's own."""

from __future__ import annotations

import base64
import getpass
import grp
import os
import shutil
import socket
import subprocess

import pytest

from facts.files import Path, Paths
from groundwork.roles import ORDER, all_roles
from groundwork.rows import Absent, Directory, File, Link
from operations import files
from tasks.base import Settings
from tests.unit.conftest import SYSTEMS

USER = getpass.getuser()
GROUP = grp.getgrgid(os.getgid()).gr_name


@pytest.fixture(autouse=True)
def said(monkeypatch):
    """What the operation reported."""
    lines: list[str] = []
    monkeypatch.setattr(files, "report", lines.append)
    return lines


def ask(*paths) -> dict[str, Path]:
    fact = Paths()
    done = subprocess.run(["sh", "-c", fact.command([str(path) for path in paths])], capture_output=True, text=True)
    assert done.returncode == 0
    return fact.process(done.stdout.splitlines())


def write(row: File, content: bytes) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["sh", "-c", files._write_command(row, None)], input=base64.b64encode(content), capture_output=True
    )


def test_the_fact_tells_kinds_modes_content_and_targets(tmp_path):
    (tmp_path / "a file").write_text("x\n")
    (tmp_path / "a file").chmod(0o640)
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to("a file")
    found = ask(tmp_path, tmp_path / "a file", tmp_path / "empty", tmp_path / "link", tmp_path / "none")
    assert found[str(tmp_path)].kind == "directory"
    file = found[str(tmp_path / "a file")]
    assert (file.kind, file.mode, file.owner) == ("file", "640", USER)
    assert file.sha256 == "73cb3858a687a8494ca3323053016282f3dad39d42cf62ca4e79dda2aac7d9ac"
    assert found[str(tmp_path / "empty")].kind == "file"
    assert found[str(tmp_path / "link")].target == "a file"
    assert str(tmp_path / "none") not in found


def test_a_file_lands_whole_with_its_mode(tmp_path):
    content = bytes(range(256)) * 400
    row = File(str(tmp_path / "it's"), owner=USER, group=GROUP, mode="600")
    done = write(row, content)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "it's").read_bytes() == content
    assert (tmp_path / "it's").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["it's"]


def test_a_refused_candidate_leaves_the_live_file_and_nothing_else(tmp_path):
    (tmp_path / "live").write_text("good\n")
    row = File(str(tmp_path / "live"), owner=USER, group=GROUP, check="grep -q good {}")
    done = write(row, b"bad\n")
    assert done.returncode != 0
    assert f"refused: {tmp_path}/live" in done.stderr.decode()
    assert (tmp_path / "live").read_text() == "good\n"
    assert os.listdir(tmp_path) == ["live"]
    assert write(row, b"good too\n").returncode == 0


def test_a_file_takes_the_place_of_a_link_and_not_of_its_target(tmp_path):
    (tmp_path / "target").write_text("theirs\n")
    (tmp_path / "link").symlink_to("target")
    assert write(File(str(tmp_path / "link"), owner=USER, group=GROUP), b"ours\n").returncode == 0
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "theirs\n"


@pytest.mark.parametrize(
    "row, now",
    [
        (Directory("/d", mode="0750"), Path("directory", "root", "root", "750")),
        (Link("/l", target="t"), Path("link", "root", "root", "777", target="t")),
        (Absent("/a"), None),
    ],
)
def test_what_agrees_is_left_alone(row, now, said):
    assert list(files._agree(row, now, None)) == []
    assert said == []


@pytest.mark.parametrize(
    "row, now, command",
    [
        (Directory("/d"), None, "install -d -o root -g root -m 00755 -- /d"),
        (Directory("/d"), Path("directory", "bob", "root", "755"), "chown root:root -- /d"),
        (Directory("/d"), Path("directory", "root", "root", "700"), "chmod 00755 -- /d"),
        (Absent("/a"), Path("file", "root", "root", "644"), "rm -f -- /a"),
        (Absent("/a"), Path("directory", "root", "root", "755"), "rmdir -- /a"),
        (Absent("/a", aside=".off"), Path("file", "root", "root", "644"), "mv -fT -- /a /a.off"),
    ],
)
def test_what_differs_is_named_and_changed(row, now, command, said):
    assert list(files._agree(row, now, None)) == [command]
    assert len(said) == 1 and row.path in said[0]


def test_a_link_is_made_only_to_what_is_there(tmp_path, make_here):
    settings = make_here(["base"], base_timezone="Europe/Berlin").settings(Settings)
    link = tmp_path / "link"
    link.symlink_to("/old")
    for target, good in ((tmp_path, True), (tmp_path / "none", False)):
        row = Link(str(link), target=str(target))
        [command] = files._agree(row, Path("link", "root", "root", "777", target="/old"), settings)
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
        assert (done.returncode == 0) == good
        assert os.readlink(link) == str(tmp_path)
    assert f"refused: {link} would lead to {tmp_path}/none" in done.stderr and "base_timezone" in done.stderr


def test_a_refusal_tells_what_the_daemon_says_of_which_line_and_what_to_edit(tmp_path, make_here):
    settings = make_here(["base"], base_journal_size="1G").settings(Settings)
    row = File(str(tmp_path / "live"), template="base/x.j2", owner=USER, group=GROUP, check="grep -Hn bad {}; false")
    command = files._write_command(row, settings)
    done = subprocess.run(["sh", "-c", command], input=base64.b64encode(b"bad\n"), capture_output=True)
    said = done.stderr.decode().splitlines()
    assert said[0] == f"{tmp_path}/live:1:bad", "the file's name, and not the candidate's"
    assert said[1].startswith(f"refused: {tmp_path}/live")
    assert said[1].endswith("It comes from templates/base/x.j2, base_journal_size")
    assert (done.returncode, os.listdir(tmp_path)) == (1, [])


UNCHECKED = {
    *(f"/etc/{role}/environment" for role in ("app", "inference", "training")),  # a quoted line for each: systemd takes any
    "/etc/mongosh.conf",  # for people at a prompt
    "/etc/security/limits.d/groundwork.conf",  # PAM has no checker; tests/host asks for the effective limit
    "/etc/timezone",  # /etc/localtime was checked
}


@pytest.mark.parametrize("codename", [codename for _, codename in SYSTEMS])
def test_every_file_is_checked_before_it_lands(make_here, codename):
    job = {"name": "forecast", "command": ["python"], "schedule": "daily", "model": "load", "report": ["python"]}
    given = {"app_source": "examples/app", "training_source": "examples/forecast", "training_jobs": [job]}
    here = make_here(list(ORDER), codename, nginx_frontend="examples/frontend", **given)
    rows = [row for role in all_roles().values() for row in here.settings(role).files(here) if isinstance(row, File)]
    unchecked = {row.path for row in rows if not files._check(row, None)}
    assert unchecked - UNCHECKED == set()
    assert len(rows) > 20


def free(port: int, *addresses: str) -> subprocess.CompletedProcess:
    command = files.ports_free("ours.service", {port: "our_port"}, addresses)
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True)


def test_a_port_that_another_program_has_is_told():
    if not shutil.which("ss"):
        pytest.skip("ss is not installed here")
    with socket.create_server(("127.0.0.2", 0)) as server:
        port = server.getsockname()[1]
        for addresses in ((), ("127.0.0.1", "127.0.0.2")):
            done = free(port, *addresses)
            assert done.returncode == 1
            assert f"ours.service can't have port {port} (our_port), which another program has: 127.0.0.2:{port}" in done.stdout
            assert f"pid={os.getpid()}" in done.stdout
        assert free(port, "127.0.0.1").returncode == 0, "at another address there is room"
    assert free(port).returncode == 0
    with socket.create_server(("0.0.0.0", 0)) as server:
        assert free(server.getsockname()[1], "127.0.0.1").returncode == 1, "everywhere is there, too"


def test_another_kind_of_thing_is_refused_in_words(said):
    [command] = files._agree(Directory("/d"), Path("file", "root", "root", "644"), None)
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert done.returncode == 1 and "/d is a file, and shall be a directory" in done.stderr


def test_a_setgid_bit_that_is_not_declared_goes(tmp_path, said):
    tmp_path.chmod(0o2750)
    now = ask(tmp_path)[str(tmp_path)]
    [command] = files._agree(Directory(str(tmp_path), owner=USER, group=GROUP, mode="750"), now, None)
    subprocess.run(["sh", "-c", command], check=True)
    assert ask(tmp_path)[str(tmp_path)].mode == "750"


def test_what_was_there_first_is_kept_once(tmp_path, said):
    live, copy = tmp_path / "a.conf", tmp_path / "a.conf.before-groundwork"
    live.write_text("theirs\n")
    live.chmod(0o640)
    row = File(str(live), owner=USER, group=GROUP, keep=True)

    def keep() -> None:
        [command] = files._kept(row, ask(live)[str(live)], new_here=True)
        assert subprocess.run(["sh", "-c", command]).returncode == 0

    keep()
    assert copy.read_text() == "theirs\n" and copy.stat().st_mode & 0o777 == 0o640
    live.write_text("# Managed by Groundwork\n")
    keep()
    assert copy.read_text() == "theirs\n"
    copy.unlink()
    keep()  # a run that was cut off has put ours there
    assert not copy.exists()
    assert list(files._kept(row, ask(live)[str(live)], new_here=False)) == []
    assert list(files._kept(File(str(live)), ask(live)[str(live)], new_here=True)) == []


def test_ours_is_not_kept_as_what_was_there_first(tmp_path, said, monkeypatch):
    """A file that says of nobody whose it is (daemon.json), after a run that was cut off."""
    monkeypatch.setattr(files, "current", lambda: None)
    monkeypatch.setattr(files, "_show_diff", lambda row, content: None)
    live, copy = tmp_path / "a.json", tmp_path / "a.json.before-groundwork"
    row = File(str(live), content="{}\n", owner=USER, group=GROUP, mode="640", keep=True)
    live.write_text("{}\n")
    live.chmod(0o640)
    assert list(files._agree(row, ask(live)[str(live)], None, new_here=True)) == [] and said == []
    live.write_text('{"theirs": 1}\n')
    keep, change = files._agree(row, ask(live)[str(live)], None, new_here=True)
    assert subprocess.run(["sh", "-c", keep]).returncode == 0 and copy.read_text() == '{"theirs": 1}\n'
    assert "kept as" in said[0] and "changed" in said[-1]
