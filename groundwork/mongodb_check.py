"""`fab check`: what is between this machine and the database of a MONGO_URI, one layer after the other.

It imports nothing of pyinfra's command line, which would have gevent change the sockets that pymongo's threads use.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Iterator

import bson
import dotenv
import pymongo
from pymongo.errors import ConfigurationError, InvalidURI, OperationFailure, PyMongoError
from pymongo.uri_parser import parse_uri

from groundwork.errors import Refusal

SECONDS = 5
"""How long a host may be silent."""
PINGS = 5

UNAUTHORIZED, AUTHENTICATION_FAILED = 13, 18
"""MongoDB's error codes."""

_TLS_ALERTS = {
    9: "is not valid yet: is this machine's clock right?",
    10: "has ended: whoever runs that MongoDB must put a new one there",
    18: "is signed by itself, and not trusted here",
    62: "is for another name",
    64: "is for another address",
}
"""OpenSSL's codes of a certificate that is refused (x509_vfy.h); what is left has no issuer that is trusted."""


class Wrong(Exception):
    """What is wrong with a layer, and what to do."""


@dataclass(frozen=True)
class Uri:
    """A MONGO_URI, taken apart; its text is never shown."""

    nodes: list[tuple[str, int]]
    user: str | None
    password: str | None
    database: str | None
    options: dict[str, Any]

    @property
    def tls(self) -> bool:
        return bool(self.options.get("tls"))

    @property
    def source(self) -> str:
        """The database where the user logs in."""
        return self.options.get("authSource") or self.database or "admin"

    def client(self, node: tuple[str, int], source: str | None = None) -> pymongo.MongoClient:
        """A client of one of its hosts alone."""
        login = {"username": self.user, "password": self.password, "authSource": source or self.source} if self.user else {}
        kept = {name: self.options[name] for name in ("authMechanism",) if self.user and name in self.options}
        tls = {name: value for name, value in self.options.items() if name.startswith("tls")}
        return pymongo.MongoClient(
            *node, directConnection=True, serverSelectionTimeoutMS=SECONDS * 1000, connectTimeoutMS=SECONDS * 1000,
            socketTimeoutMS=SECONDS * 1000, **login, **kept, **tls,
        )  # fmt: skip

    def context(self) -> ssl.SSLContext:
        """What TLS is spoken with. Raises Wrong for a file that is none."""
        insecure = self.options.get("tlsInsecure")
        authority = self.options.get("tlsCAFile")
        try:
            context = ssl.create_default_context(cafile=authority)
        except OSError:  # ssl.SSLError among them
            raise Wrong(f"tlsCAFile={authority}: is no certificate in PEM form that can be read") from None
        context.check_hostname = not (insecure or self.options.get("tlsAllowInvalidHostnames") or self.options.get("tlsAllowInvalidCertificates"))
        if insecure or self.options.get("tlsAllowInvalidCertificates"):
            context.verify_mode = ssl.CERT_NONE
        return context


def uri_of(file: str | None) -> Uri:
    """MONGO_URI of the file that is named, or of the environment, or of .env.

    Raises:
        Refusal: where there is none, or none that can be read; without its text, which holds a password.
    """
    if file and not Path(file).is_file():
        raise Refusal(f"{file}: there is no such file; fab env writes it")
    values = {} if file else dict(os.environ)
    if "MONGO_URI" not in values:
        values = dotenv.dotenv_values(file or ".env", interpolate=False)
    text = values.get("MONGO_URI")
    if not text:
        raise Refusal(f"no MONGO_URI in {file or 'the environment, and none in .env'}; fab env writes it")
    return parsed(text, values.get("MONGO_DB"))


def parsed(text: str, database: str | None = None) -> Uri:
    """A URI, taken apart. pymongo's own words for what is wrong may hold parts of the password.

    Args:
        database: to read, where the URI names none.
    Raises:
        Refusal.
    """
    if not text.startswith(("mongodb://", "mongodb+srv://")):
        raise Refusal("MONGO_URI must begin with mongodb:// (or mongodb+srv://)")
    if text.startswith("mongodb+srv://"):
        _refuse_without_dnspython()
    if text.count("@") > 1:  # what pymongo would take for the host is a part of the password
        raise Refusal(f"MONGO_URI can't be read: {_option('')}")
    try:
        found = parse_uri(text, validate=True, warn=False, connect_timeout=SECONDS)
    except OSError as error:
        raise Refusal(f"MONGO_URI: {error.filename}: {error.strerror}") from None
    except ConfigurationError as error:
        if text.startswith("mongodb+srv://"):
            raise Refusal("name: MONGO_URI is mongodb+srv, and DNS has no SRV record for its host: is the name right?") from None
        raise Refusal(f"MONGO_URI: {_option(str(error))}") from None
    except (InvalidURI, ValueError, TypeError) as error:
        raise Refusal(f"MONGO_URI can't be read as mongodb://USER:PASSWORD@HOST:PORT/DATABASE?OPTIONS: {_option(str(error))}") from None
    return Uri(found["nodelist"], found["username"], found["password"], found["database"] or database, dict(found["options"]))


def _option(said: str) -> str:
    """What may be wrong in a URI; of pymongo's words only names of options, which are no secret."""
    for name in ("authSource", "tlsCAFile", "tls", "authMechanism", "readPreference"):
        if name.lower() in said.lower():
            return f"its option {name} is wrong"
    return "in user and password, each of : / ? # [ ] @ % is written as %3A and so on (fab env does)"


def _refuse_without_dnspython() -> None:
    try:
        import dns.resolver  # noqa: F401
    except ImportError:
        raise Refusal("MONGO_URI is mongodb+srv, which is not checked here: dnspython is missing (uv pip install dnspython)") from None


# Layers


def run(uri: Uri) -> bool:
    """Check every host of a URI, print a line for each layer, and say whether all is well."""
    good = [_host(uri, node) for node in uri.nodes]
    return all(good)


def _host(uri: Uri, node: tuple[str, int]) -> bool:
    print(f"{node[0]} port {node[1]}")
    layers = check(uri, node)
    while True:
        try:
            name, said = next(layers)
        except StopIteration:
            return True
        except Wrong as error:
            name, _, said = str(error).partition(": ")
            print(f"  {name:<9} WRONG  {said}", flush=True)
            return False
        print(f"  {name:<9} ok     {said}", flush=True)


def check(uri: Uri, node: tuple[str, int]) -> Iterator[tuple[str, str]]:
    """Layers of the way to one host, each with what was seen.

    Raises:
        Wrong: "layer: what is wrong, and what to do", at the first one that is.
    """
    addresses = _addresses(*node)
    yield "name", ", ".join(addresses)
    address = _reached(addresses, node[1])
    yield "route", f"{address} answers"
    yield "firewall", f"port {node[1]} is open to this machine"
    yield "tls", _tls(uri, node, address)
    client = uri.client(node)
    try:
        yield "password", _login(uri, node, client)
        yield "database", _read(uri, client)
    finally:
        client.close()


def _addresses(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        if getattr(error, "errno", None) == socket.EAI_AGAIN:
            raise Wrong(f"name: {host} can't be looked up: no DNS server answers this machine") from None
        raise Wrong(f"name: {host} does not resolve: is it written right? Is it a name of the VPN's or the company's own DNS?") from None
    return list(dict.fromkeys(item[4][0] for item in found))


def _reached(addresses: list[str], port: int) -> str:
    """The first address that takes a connection."""
    errors = []
    for address in addresses:
        try:
            socket.create_connection((address, port), SECONDS).close()
            return address
        except OSError as error:
            errors.append((address, error))
    address, error = errors[0]
    raise Wrong(_unreached(address, port, error))


def _unreached(address: str, port: int, error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        local = address.startswith("127.") or address == "::1"
        what = "`fab tunnel mongodb` does not run, or has another --port" if local else "mongod does not run there, or has another port"
        return f"firewall: {address} refuses port {port}: nobody listens: {what}"
    if isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT:
        return (
            f"firewall: {address} is silent on port {port}: a firewall or a security group drops it (is this machine's address in "
            "the flows of the inventory?), or no machine is there"
        )
    if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return f"route: no way to {address} ({error.strerror}): is the VPN or the link up? Is the machine on?"
    if error.errno in (errno.EPERM, errno.EACCES):
        return f"firewall: this machine's own firewall keeps it from {address} port {port}"
    return f"route: {address} port {port}: {error.strerror or error}"


def _tls(uri: Uri, node: tuple[str, int], address: str) -> str:
    if not uri.tls:
        if _speaks_plainly(address, node[1]):
            return "not used, by server and URI"
        if _speaks_tls(address, node[1]):
            raise Wrong("tls: the server wants TLS, and MONGO_URI has none: add tls=true (and tlsCAFile=FILE for a company's authority)")
        raise Wrong(f"tls: what answers on port {node[1]} is no MongoDB: is the port right?")
    try:
        context = uri.context()
    except Wrong as error:
        raise Wrong(f"tls: {error}") from None
    try:
        with socket.create_connection((address, node[1]), SECONDS) as raw, context.wrap_socket(raw, server_hostname=node[0]) as secured:
            return f"{secured.version()}, {_judged(context)}"
    except ssl.SSLCertVerificationError as error:
        raise Wrong(f"tls: {_refused(error, uri, node[0])}") from None
    except OSError as error:  # ssl.SSLError among them
        if _speaks_plainly(address, node[1]):
            raise Wrong("tls: MONGO_URI wants TLS, and the server speaks none: take tls=true out of it (or set mongodb_tls)") from None
        if _speaks_tls(address, node[1]):
            raise Wrong(f"tls: the server breaks the handshake off ({getattr(error, 'reason', None) or error})") from None
        raise Wrong(f"tls: what answers on port {node[1]} speaks no TLS, and is no MongoDB: is the port right?") from None


def _judged(context: ssl.SSLContext) -> str:
    if context.verify_mode == ssl.CERT_NONE:
        return "the certificate is not looked at, as MONGO_URI says"
    return "the certificate is trusted" + ("" if context.check_hostname else ", for whatever name, as MONGO_URI says")


def _refused(error: ssl.SSLCertVerificationError, uri: Uri, host: str) -> str:
    authority = uri.options.get("tlsCAFile")
    said = _TLS_ALERTS.get(error.verify_code, f"is not issued by {authority or 'an authority that this machine trusts'}")
    ways = {
        62: f": connect to a name that it has, not to {host}",
        64: f": connect to a name that it has, not to {host}",
        9: "",
        10: "",
    }
    way = ways.get(error.verify_code, ": name the right authority in tlsCAFile=FILE (mongodb_tls_authority of the inventory)")
    return f"the server's certificate {said}{way}"


def _speaks_plainly(address: str, port: int) -> bool:
    """Whether a MongoDB answers there without TLS."""
    body = bson.encode({"isMaster": 1, "$db": "admin"})
    # OP_MSG: length, request, response to, 2013; flags 0, a section of kind 0 (MongoDB Wire Protocol).
    message = struct.pack("<iiiiIB", 21 + len(body), 1, 0, 2013, 0, 0) + body
    try:
        with socket.create_connection((address, port), SECONDS) as connection:
            connection.sendall(message)
            answer = connection.recv(16)
    except OSError:
        return False
    return len(answer) == 16 and struct.unpack("<iiii", answer)[2:] == (1, 2013)


def _speaks_tls(address: str, port: int) -> bool:
    """Whether anything answers there with TLS, whatever its certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((address, port), SECONDS) as raw, context.wrap_socket(raw):
            return True
    except OSError:
        return False


def _login(uri: Uri, node: tuple[str, int], client: pymongo.MongoClient) -> str:
    try:
        client.admin.command("ping")
    except OperationFailure as error:
        if error.code != AUTHENTICATION_FAILED:
            raise Wrong(f"password: the server says: {error.details.get('errmsg', error.code) if error.details else error.code}") from None
        raise Wrong(f"password: {_not_logged_in(uri, node)}") from None
    except PyMongoError as error:
        raise Wrong(f"password: the server answered, and did not stay ({type(error).__name__}): what does its log say?") from None
    return f"{uri.user} is logged in, by {uri.source}" if uri.user else "MONGO_URI names no user"


def _not_logged_in(uri: Uri, node: tuple[str, int]) -> str:
    """The server does not say whether user, password or authSource is wrong: other sources are tried."""
    for source in dict.fromkeys([uri.database, "admin"]):
        if source and source != uri.source and _is_let_in(uri, node, source):
            return f"{uri.user} is no user of {uri.source}, but of {source}: write authSource={source}"
    return (
        f"the password of {uri.user} is wrong, or there is no such user in {uri.source} (authSource): fab env writes what the "
        "secrets have, and the next run of deploy.py makes it so"
    )


def _is_let_in(uri: Uri, node: tuple[str, int], source: str) -> bool:
    client = uri.client(node, source)
    try:
        client.admin.command("ping")
        return True
    except PyMongoError:
        return False
    finally:
        client.close()


def _read(uri: Uri, client: pymongo.MongoClient) -> str:
    database = uri.database or uri.source
    try:
        count = len(client[database].list_collection_names())
        times = [_timed(client) for _ in range(PINGS)]
    except OperationFailure as error:
        if error.code != UNAUTHORIZED:
            raise Wrong(f"database: {database}: error {error.code}") from None
        who = f"{uri.user} may not" if uri.user else "MONGO_URI names no user, and nobody may"
        raise Wrong(f"database: {who} read {database}: is that the right database? (roles in mongodb_users)") from None
    except PyMongoError as error:
        raise Wrong(f"database: the connection did not last ({type(error).__name__})") from None
    return f"{database} can be read ({count} collections); a ping takes {median(times) * 1000:.1f} ms"


def _timed(client: pymongo.MongoClient) -> float:
    start = time.perf_counter()
    client.admin.command("ping")
    return time.perf_counter() - start
