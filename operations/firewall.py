"""The host's firewall: our own nftables table, live as it is on disk."""

from __future__ import annotations

from typing import Iterable

from pyinfra import host, state
from pyinfra.api import operation
from pyinfra.api.operation import OperationMeta

from facts.firewall import RULES, Firewall
from operations.report import report

UNIT = "groundwork-firewall.service"


@operation()
def loaded(after: Iterable[OperationMeta] = ()):
    """Load the rules on disk where the live table is not what they give.

    That is so after a change of the file, and when somebody changed or flushed the table by hand.

    Args:
        after: operations of this run that may write the rules.
    """
    if not state.is_executing and any(meta.will_change for meta in after):
        yield "true"  # a prediction
    elif not host.get_fact(Firewall):
        report(f"firewall: loading {RULES}")
        yield f"systemctl reload-or-restart {UNIT} || {{ journalctl --no-pager -o cat -n 20 -u {UNIT} >&2; exit 1; }}"
