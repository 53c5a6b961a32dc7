"""Where an application finds its neighbours, as the variables that it reads, composed from the topology.

Each function gives a dict of environment variables, empty where the inventory has no such service.
Names, passwords and databases are quoted, so any character may be in them.
"""

from __future__ import annotations

from typing import Callable
from urllib.parse import quote

from groundwork.topology import Here

Secrets = Callable[[str], str]
"""Gives a secret's value by its name."""


def _location(here: Here, role: str, port: int) -> str:
    """`host:port` of a service, IPv6 in brackets."""
    address = here.address(role) or ""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


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


def mongodb(here: Here, user: str, database: str, secret: Secrets) -> dict[str, str]:
    """MONGO_URI and MONGO_DB, for a user of its own database with the secret `mongodb/<user>`."""
    if here.address("mongodb") is None:
        return {}
    name = quote(database, safe="")
    tls = "&tls=true" if _tls(here, "mongodb") else ""
    login = _login(user, secret(f"mongodb/{user}"))
    location = _location(here, "mongodb", _port(here, "mongodb", 27017))
    return {"MONGO_URI": f"mongodb://{login}@{location}/{name}?authSource={name}{tls}", "MONGO_DB": database}


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
    address = f"[{address}]" if ":" in address else address
    return {"CHROMA_SERVER_HOST": address, "CHROMA_SERVER_PORT": str(_port(here, "chromadb", 8000))}


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
