"""Modules that are read while hosts are being logged in to, or when they are first needed: what comes before a login waits for nothing."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Late:
    """A module, by its name; it is read when something of it is asked for."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.read(), attribute)

    def read(self) -> Any:
        """The module itself.

        Raises:
            ImportError: it is not there.
        """
        return import_module(self._name)


x509 = Late("cryptography.x509")
http_client = Late("http.client")
urllib_request = Late("urllib.request")
ALL = (x509, http_client, urllib_request)
