"""Where an application finds its neighbours, as the variables that it reads, composed from the topology.

Each function gives a dict of environment variables, empty where the inventory has no such service.
Names, passwords and databases are quoted, so any character may be in them.
"""

from __future__ import annotations

from typing import Callable
from urllib.parse import quote

from groundwork import certificates
from groundwork.rows import Absent, Directory, File, Row
from groundwork.settings import bracketed
from groundwork.topology import Here

Secrets = Callable[[str], str]
"""Gives a secret's value by its name."""


def _location(here: Here, role: str, port: int) -> str:
    """`host:port` of a service, IPv6 in brackets."""
    return _joined(here.address(role) or "", port)


def _joined(address: str, port: int) -> str:
    return f"{bracketed(address)}:{port}"


def _port(here: Here, role: str, default: int) -> int:
    if here.peers(role):
        return here.settings_of(role).port
    found = here.topology.external(role)
    return found.port if found and found.port else default


def _tls(here: Here, role: str) -> bool:
    found = None if here.peers(role) else here.topology.external(role)
    return bool(found and found.tls)


def _login(user: str, password: str) -> str:
    return f"{quote(user, safe='')}:{quote(password, safe='')}"


AUTHORITY = "/etc/groundwork/mongodb-authority.pem"
"""Where a client's host has the certificates that MongoDB's is judged by, when they are not the system's."""


def mongodb(here: Here, user: str, database: str, secret: Secrets, authority: str = AUTHORITY) -> dict[str, str]:
    """MONGO_URI and MONGO_DB, for a user of its own database with the secret `mongodb/<user>`.

    Args:
        authority: where the client has what `mongodb_authority` puts on its host.
    """
    if here.address("mongodb") is None:
        return {}
    name = quote(database, safe="")
    login = _login(user, secret(f"mongodb/{user}"))
    location = _location(here, "mongodb", _port(here, "mongodb", 27017))
    tls = "&tls=true" if _tls(here, "mongodb") else ""
    if _speaks_tls(here):
        settings, address = here.settings_of("mongodb"), here.address("mongodb") or ""
        near = address == "127.0.0.1"  # loopback, or a tunnel's end: no name that a certificate has
        location = _joined(address if near else settings.tls_name or address, settings.port)
        tls = "&tls=true" + (f"&tlsCAFile={quote(authority)}" if settings.tls_authority else "")
        tls += "&tlsAllowInvalidHostnames=true" if near else ""
    return {"MONGO_URI": f"mongodb://{login}@{location}/{name}?authSource={name}{tls}", "MONGO_DB": database}


def mongodb_authority(here: Here) -> list[Row]:
    """What a client of MongoDB needs on its host for the URI of `mongodb`; every client's role has these rows."""
    authority = here.settings_of("mongodb").tls_authority if _speaks_tls(here) else None
    if not authority:
        return [Absent(AUTHORITY)]
    return [Directory("/etc/groundwork"), File(AUTHORITY, content=certificates.read(authority))]


def _speaks_tls(here: Here) -> bool:
    """Whether the MongoDB that a host uses is ours, and speaks TLS."""
    return bool(here.peers("mongodb")) and here.settings_of("mongodb").tls != "off"


def redis(here: Here, user: str, database: int, secret: Secrets) -> dict[str, str]:
    """REDIS_HOST, REDIS_PORT, REDIS_DB and REDIS_URL, for a user with the secret `redis/<user>`."""
    address = here.address("redis")
    if address is None:
        return {}
    port = _port(here, "redis", 6379)
    scheme = "rediss" if _tls(here, "redis") else "redis"
    login = _login(user, secret(f"redis/{user}"))
    return {
        "REDIS_HOST": address,
        "REDIS_PORT": str(port),
        "REDIS_DB": str(database),
        "REDIS_URL": f"{scheme}://{login}@{_location(here, 'redis', port)}/{database}",
    }


def chromadb(here: Here) -> dict[str, str]:
    """CHROMA_SERVER_HOST (in brackets where it is an IPv6 address: clients make a URL of it) and _PORT."""
    address = here.address("chromadb")
    if address is None:
        return {}
    return {"CHROMA_SERVER_HOST": bracketed(address), "CHROMA_SERVER_PORT": str(_port(here, "chromadb", 8000))}


def inference(here: Here) -> dict[str, str]:
    """INFERENCE_URL: http://host:port, without a path."""
    if here.address("inference") is None:
        return {}
    scheme = "https" if _tls(here, "inference") else "http"
    return {"INFERENCE_URL": f"{scheme}://{_location(here, 'inference', _port(here, 'inference', 8100))}"}


def postgresql(here: Here, user: str, database: str, secret: Secrets) -> dict[str, str]:
    """DATABASE_URL, for a user with the secret `postgresql/<user>`."""
    if here.address("postgresql") is None:
        return {}
    tls = "?sslmode=require" if _tls(here, "postgresql") else ""
    login = _login(user, secret(f"postgresql/{user}"))
    location = _location(here, "postgresql", _port(here, "postgresql", 5432))
    return {"DATABASE_URL": f"postgresql://{login}@{location}/{quote(database, safe='')}{tls}"}
