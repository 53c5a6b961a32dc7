"""Python environments: what their name stands for, and which indexes their packages come from."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
import zipfile
from functools import partial

import pytest

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
