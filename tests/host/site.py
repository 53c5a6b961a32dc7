"""The site that a host's nginx serves, by its own name, whatever the DNS says."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass

import pytest
import urllib3


@dataclass
class Site:
    """A host's nginx, through two tunnels: for nginx, the requests come from loopback."""

    name: str
    http: int
    https: int

    def ask(self, path: str, method: str = "GET", tls: bool = True, **more) -> urllib3.HTTPResponse:
        """One request; redirects are not followed."""
        pool = urllib3.HTTPConnectionPool("127.0.0.1", self.http)
        if tls:
            pool = urllib3.HTTPSConnectionPool(
                "127.0.0.1", self.https, server_hostname=self.name, cert_reqs="CERT_NONE", assert_hostname=False
            )
        headers = {"Host": self.name, **more.pop("headers", {})}
        with pool:
            return pool.urlopen(method, path, headers=headers, redirect=False, retries=False, timeout=60, **more)

    def shake_hands(self, name: str = "", **options) -> ssl.SSLSocket:
        """A TLS connection; what this machine's own policy forbids is allowed."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers(options.pop("ciphers", "ALL:@SECLEVEL=0"))
        context.set_alpn_protocols(options.pop("alpn", ["http/1.1"]))
        if version := options.pop("version", None):
            context.minimum_version = context.maximum_version = version
        connection = socket.create_connection(("127.0.0.1", self.https), 10)
        return context.wrap_socket(connection, server_hostname=name or self.name)

    def say(self, *lines: str, then: bytes = b"") -> ssl.SSLSocket:
        """A connection on which the head of a request was sent, and perhaps more."""
        connection = self.shake_hands()
        connection.sendall("\r\n".join([lines[0], f"Host: {self.name}", *lines[1:], "", ""]).encode() + then)
        return connection


@pytest.fixture(scope="module")
def site(nginx):
    name = next(iter(nginx.settings("nginx").domains), nginx.here.private_address)
    with nginx.tunnel(80) as http, nginx.tunnel(443) as https:
        yield Site(name, http, https)
