"""A connection that is dead is known to be, in a bounded time."""

from __future__ import annotations

import socket

from pyinfra.api import Host
from pyinfra.connectors.ssh import SSHConnector

KEEPALIVE = 5
"""Seconds after which a silent connection is asked for a sign of life."""


def bound(host: Host, seconds: int) -> None:
    """End a connection that the host does not answer on.

    Without it a run waits for the kernel to give up, which takes Linux a quarter of an hour where
    something was sent, and for ever where nothing was. A host that works at something for an hour
    answers all the while: it is the kernel there that does.

    Args:
        host: connected.
        seconds: without an answer.
    """
    if not isinstance(host.connector, SSHConnector) or host.connector.client is None:
        return
    transport = host.connector.client.get_transport()
    if transport is None:
        return
    transport.set_keepalive(KEEPALIVE)
    transport.packetizer.write_all = _told(transport.packetizer.write_all)
    option = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux; elsewhere the kernel's own time counts
    end = _socket(transport)
    if option is not None and end is not None:
        end.setsockopt(socket.IPPROTO_TCP, option, seconds * 1000)


def _told(write_all):
    """Writing to a dead connection is an EOFError in paramiko, which pyinfra takes for a defect of its own
    (a traceback, and the end of the run for all hosts)."""

    def write(out):
        try:
            write_all(out)
        except EOFError:
            raise ConnectionResetError("the connection is lost") from None

    return write


def _socket(transport):
    """The socket below a transport: behind jump hosts, the first one's; None for a ProxyCommand."""
    end = transport.sock
    while hasattr(end, "get_transport"):
        end = end.get_transport().sock
    return end if hasattr(end, "setsockopt") else None
