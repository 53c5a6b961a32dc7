"""Python environments: what their name stands for, and which indexes their packages come from."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
import time
import zipfile
from functools import partial
from types import SimpleNamespace

import pytest
from pyinfra.api import StringCommand

from facts.uv import EnvironmentsState
from groundwork.secrets import Secret
from operations import uv
from tests.unit.conftest import make_topology

LOCK = "numpy==2.0\ntorch==2.9.0+cu128\n"


def test_a_backend_is_part_of_the_name_and_without_one_names_stay():
    assert uv.name(LOCK) == uv.name(LOCK, None, None)
    assert len({uv.name(LOCK), uv.name(LOCK, torch_backend="cpu"), uv.name(LOCK, torch_backend="cu128")}) == 3


@pytest.fixture
def build(monkeypatch):
    """The command that makes an environment on a host with those settings."""

    def made(target: str, backend: str | None, **data: object):
        here = make_topology({"one": (["base"], data)}).hosts["one"]
        monkeypatch.setattr(uv, "current", lambda: here)
        monkeypatch.setattr(uv, "secret_value", lambda name: f"http://anna:pa55@{name}")
        return uv._build(target, LOCK, sys.executable, False, backend)

    return made


def lines(command) -> list[str]:
    return command.connector_arguments["_stdin"].splitlines()[:2]


def test_indexes_come_on_standard_input(build):
    given = {"python_index": Secret("mirror/one"), "python_torch_index": Secret("mirror/two")}
    command = build("/x", "cu128", **given)
    assert lines(command) == ["http://anna:pa55@mirror/one", "http://anna:pa55@mirror/two/cu128"]
    assert "pa55" not in command.get_raw_value()
    assert lines(build("/x", None, **given))[1] == ""
    assert lines(build("/x", "cu128")) == ["", "cu128"]
    assert lines(build("/x", None)) == ["", ""]


@pytest.fixture
def mirror(tmp_path):
    """A default index, and PyTorch's for cu128, which has an old numpy beside torch, as the real one has."""
    for path, name, version in (("simple", "numpy", "2.0"), ("simple", "torch", "2.9.0"),
                                ("torch/cu128", "torch", "2.9.0+cu128"), ("torch/cu128", "numpy", "1.0")):  # fmt: skip
        _publish(tmp_path / path / name, name, version)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    handler.func.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def _publish(directory, name: str, version: str) -> None:
    directory.mkdir(parents=True)
    wheel, info = f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    with zipfile.ZipFile(directory / wheel, "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    (directory / "index.html").write_text(f'<a href="{wheel}">{wheel}</a>')


@pytest.mark.parametrize("backend, installed", [("cu128", True), (None, False)])
def test_a_mirror_of_pytorchs_index(build, mirror, tmp_path, monkeypatch, backend, installed):
    """Seen with uv itself: the packages of the tag from the one, all others from the other."""
    monkeypatch.setattr(uv, "UV", uv.controller_uv())
    monkeypatch.setattr(uv, "CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(uv, "_ENVIRONMENT", f"UV_NO_CONFIG=1 UV_CACHE_DIR={tmp_path}/cache NO_PROXY=127.0.0.1")
    target = tmp_path / "environments/one"
    command = build(str(target), backend, python_index=f"{mirror}/simple", python_torch_index=f"{mirror}/torch/")
    done = subprocess.run(
        ["sh", "-c", command.get_raw_value()], input=command.connector_arguments["_stdin"],
        capture_output=True, text=True, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert (done.returncode == 0) == installed, done.stderr
    if installed:
        found = {path.name for path in target.glob("lib/*/site-packages/*.dist-info")}
        assert found == {"numpy-2.0.dist-info", "torch-2.9.0+cu128.dist-info"}
    else:
        assert "torch==2.9.0+cu128" in done.stderr


def test_what_is_begun_goes_on_by_itself_with_what_was_on_its_input(tmp_path, monkeypatch):
    monkeypatch.setattr(uv, "CACHE", str(tmp_path / "cache/uv"))
    os.mkfifo(tmp_path / "go")
    build = StringCommand(f"cat >{tmp_path}/given; read go <{tmp_path}/go; echo done >{tmp_path}/built", _stdin="index\n\nlock\n")
    command = uv._detached(build)
    subprocess.run(["sh", "-c", command.get_raw_value()], input=command.connector_arguments["_stdin"], text=True, check=True, timeout=10)
    assert not (tmp_path / "built").exists()
    (tmp_path / "go").write_text("go\n")
    end = time.monotonic() + 10
    while not (tmp_path / "built").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert (tmp_path / "given").read_text() == "index\n\nlock\n"


def test_what_may_need_packages_that_are_still_to_be_installed_is_not_begun(monkeypatch):
    def begun(state: EnvironmentsState, **more: object) -> int:
        monkeypatch.setattr(uv, "host", SimpleNamespace(get_fact=lambda fact, **_: state))
        given = {"path": "/opt/x/environments", "requirements": LOCK, **more}
        return len(list(uv.begin._inner([given])))

    here = make_topology({"one": (["base"], {})}).hosts["one"]
    monkeypatch.setattr(uv, "current", lambda: here)
    monkeypatch.setattr(uv, "report", lambda message: None)
    there = EnvironmentsState(uv=True, python="Python 3.11")
    assert begun(there) == 1
    assert begun(there, build=True) == begun(EnvironmentsState(uv=True)) == 0
    assert begun(EnvironmentsState(uv=True, python="Python 3.11", complete={uv.name(LOCK): "Python 3.11"})) == 0
