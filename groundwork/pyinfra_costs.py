"""What pyinfra works out again for each operation of each host, worked out once: nothing else comes of it.

With 50 hosts that was two thirds of the controller's work. docs/upstream has the same as patches for pyinfra, with
what was measured; here, names of its modules are replaced, and its version is pinned. Called from config.py.
"""

from __future__ import annotations

import atexit
import gc
import sys
from functools import cache
from importlib import import_module
from traceback import walk_stack
from typing import Any

from pyinfra.api import arguments, connectors, facts, inventory
from pyinfra.api.inventory import Inventory
from pyinfra.api.state import State
from pyinfra.api.util import PYINFRA_INSTALL_DIR


def operation_order(state: State) -> list[int]:
    """Where in the deploy an operation is called: the lines of its callers, the outermost first, without pyinfra's own.

    pyinfra asks `inspect.stack()`, which looks for the source of each frame in all modules there are.
    """
    places = [(frame.f_code.co_filename, line) for frame, line in walk_stack(sys._getframe(1))][::-1]
    deploy = state.current_deploy_filename
    files = [file for file, _ in places]
    start = (files.index(deploy) if deploy in files else len(files)) if deploy else 0
    lines = [line for file, line in places[start:] if not file.startswith(PYINFRA_INSTALL_DIR)]
    return [state.current_op_file_number, *lines]


def groups_data(hosts: Inventory, groups: list[str]) -> dict[str, Any]:
    """The data of some groups together: it is looked up for each argument of each operation."""
    kept = hosts.__dict__.setdefault("_groups_data", {})
    key = tuple(groups)
    if key not in kept:
        kept[key] = _pyinfras_groups_data(hosts, groups)
    return kept[key]


_pyinfras_groups_data = Inventory.get_groups_data


def set_up() -> None:
    """Put them into pyinfra's place."""
    # The module, whose name in pyinfra.api is the decorator's.
    import_module("pyinfra.api.operation").get_operation_order_from_stack = operation_order
    Inventory.get_groups_data = groups_data
    # The same for each operation are the types of pyinfra's own arguments, and for each host the connectors there are.
    arguments.all_global_arguments = facts.all_global_arguments = cache(arguments.all_global_arguments)
    connectors.get_all_connectors = inventory.get_all_connectors = cache(connectors.get_all_connectors)
    # When Python ends it searches all there is for cycles, again and again, for 0.25 s: the system takes it back in any case.
    atexit.register(gc.freeze)
