"""What groundwork.pyinfra_costs puts into pyinfra's place gives what pyinfra's own gives, and is what pyinfra calls."""

from __future__ import annotations

import json

import pytest
from tests.unit.pyinfra_fake import ROOT, run

INVENTORY = """
_one = ("@fake/one", {"place": "host"})
_two = ("@fake/two", {})
front = [_one, _two]
back = [_two]
"""

# Each way to call: in a line, in a loop, from a function of another module, in a deploy, in an included file.
DEPLOY = """
import json
import more
from pyinfra import host, local
from pyinfra.api import deploy
from pyinfra.operations import server

@deploy("Inside")
def inside():
    server.shell(name="in a deploy", commands=["true"])

server.shell(name="first", commands=["true"])
for number in range(2):
    server.shell(name=f"loop {number}", commands=["true"])
inside()
more.called()
if host.name == "@fake/two":
    inside()
local.include("included.py")
server.shell(name=json.dumps([host.data.place, host.data.get("_sudo"), host.data.dict()]), commands=["true"])
"""

CONFIG = """
import atexit, json
from importlib import import_module
from pyinfra.context import ctx_state
from groundwork import pyinfra_costs

if {ours}:
    pyinfra_costs.set_up()
    # What is not called any more.
    import_module("pyinfra.api.util").stack = None

def tell():
    state = ctx_state.get()
    found = {{host.name: [(list(state.op_meta[key].op_order), sorted(state.op_meta[key].names)) for key in host.op_hash_order] for host in state.inventory}}
    print("ORDER", json.dumps([found, state.get_op_order()]))

atexit.register(tell)
"""


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "inventory.py").write_text(INVENTORY)
    (tmp_path / "deploy.py").write_text(DEPLOY)
    (tmp_path / "included.py").write_text("from pyinfra.operations import server\nserver.shell(name='included', commands=['true'])\n")
    (tmp_path / "more.py").write_text("from pyinfra.operations import server\ndef called():\n    server.shell(name='more', commands=['true'])\n")
    (tmp_path / "group_data").mkdir()
    (tmp_path / "group_data" / "all.py").write_text("place = 'all'\n_sudo = True\n")
    (tmp_path / "group_data" / "front.py").write_text("place = 'front'\n")
    (tmp_path / "group_data" / "back.py").write_text("place = 'back'\n_retries = 1\n")
    return tmp_path


@pytest.mark.parametrize("operations", [["deploy.py"], ["server.shell", "uptime"]], ids=["deploy", "operation"])
def test_operations_have_the_same_order_and_arguments(repository, operations):
    said = []
    for ours in (False, True):
        (repository / "config.py").write_text(CONFIG.format(ours=ours))
        done = run(repository / "inventory.py", *operations, "-y", directory=repository, more={"PYTHONPATH": str(ROOT)})
        assert done.returncode == 0, done.stderr
        said += [json.loads(line.removeprefix("ORDER ")) for line in done.stdout.splitlines() if line.startswith("ORDER ")]
    assert said[0] == said[1]
    assert len(said) == 2 and all(said[0][0].values())

