"""Stages: barriers between tiers; between them each host goes on by itself, as fast as it can."""

from __future__ import annotations

from typing import Iterable, Iterator

import gevent
from pyinfra import logger
from pyinfra.api import operation, operations
from pyinfra.api.host import Host
from pyinfra.api.operation import OperationMeta
from pyinfra.api.state import State
from pyinfra.context import ctx_state
from pyinfra_cli import cli

TELL_SECONDS = 30
"""How often it is told who is still at work."""

_together: set[str] = set()
"""Operations that no host begins before all have come there."""


@operation()
def _barrier():
    yield from ()


def stage(name: str) -> None:
    """Let no host pass before all have come here.

    Operations are in one order for all hosts, level by level and not tier by tier; an operation that every host
    has, called from one line of deploy.py, is what makes the tiers wait for each other. It does nothing.

    Args:
        name: what follows; shown in the run's output.
    """
    together(_barrier(name=f"Stage: {name}"))


def together(operation: OperationMeta) -> OperationMeta:
    """Let no host begin an operation before all have done what comes before it, on each of them."""
    _together.add(operation._hash)
    return operation


def set_up() -> None:
    """Let hosts go side by side: pyinfra has all of them wait for the slowest at each operation, or fails to notice failures."""
    cli.run_ops = run_ops


def run_ops(state: State, serial: bool = False, no_wait: bool = False) -> None:
    """Run all operations, in the place of pyinfra's own function of this name.

    Where one host fails, and no more are allowed to, the others end what they are at, and begin nothing more.

    Raises:
        PyinfraError: more hosts have failed than --fail-percent allows.
    """
    state.is_executing = True
    with ctx_state.use(state):
        for part in _parts(state):
            hosts = list(state.inventory.get_active_hosts())
            if len(hosts) == 1 or len(part) == 1:
                for operation in part:
                    operations._run_single_op(state, operation)
            else:
                _side_by_side(state, hosts, part)


def _parts(state: State) -> Iterator[list[str]]:
    """Operations in their order, up to the next that all hosts begin together; and that one."""
    part: list[str] = []
    for operation in state.get_op_order():
        given = state.get_op_meta(operation).global_arguments
        # --parallel says how many hosts may be at work: pyinfra counts them at each operation.
        if operation in _together or given["_serial"] or (given["_parallel"] or 0) in range(1, len(state.active_hosts)):
            yield from filter(None, (part, [operation]))
            part = []
        else:
            part.append(operation)
    if part:
        yield part


def _side_by_side(state: State, hosts: list[Host], part: list[str]) -> None:
    logger.info(f"--> Starting {len(part)} operations, each host by itself\n")
    ended: list[BaseException] = []
    jobs = {gevent.spawn(_go_on, state, host, part, ended): host for host in hosts}
    while len(gevent.joinall(jobs, timeout=TELL_SECONDS)) < len(jobs):
        logger.info(f"--> At work still: {_at_work(state, [host for job, host in jobs.items() if not job.ready()])}")
    if ended:
        raise ended[0]


def _go_on(state: State, host: Host, part: list[str], ended: list[BaseException]) -> None:
    """All of a part's operations on one host, each line with the operation's name."""
    padding = host.print_prefix_padding
    try:
        for operation in part:
            if ended:
                return
            if operation in state.ops[host]:
                host.print_prefix_padding = f"{padding} {_name(state, operation)}:"
                if not operations._run_host_op_with_context(state, host, operation):
                    state.fail_hosts({host})
                    return
    except BaseException as error:
        ended.append(error)
    finally:
        host.print_prefix_padding = padding


def _name(state: State, operation: str) -> str:
    return ", ".join(sorted(state.get_op_meta(operation).names))


def _at_work(state: State, hosts: Iterable[Host]) -> str:
    found = [f"{host.name} ({_name(state, host.executing_op_hash)})" for host in hosts if host.executing_op_hash]
    return ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
