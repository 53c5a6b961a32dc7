"""Progress, as systemd shows it: sd_notify(3)'s STATUS=… in `systemctl status`, and a line in the journal."""

from __future__ import annotations

import os
import socket


def notify(status: str) -> None:
    """Say how far it is."""
    print(status, flush=True)
    if not (address := os.environ.get("NOTIFY_SOCKET")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        try:
            connection.sendto(f"STATUS={status}".encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
        except OSError as error:  # progress that is not shown is no reason to end
            print(f"systemd was not told: {error}", flush=True)
