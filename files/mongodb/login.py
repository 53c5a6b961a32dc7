# How this host's scripts reach mongod, and what they know of the administrator's password. `wanted` stands before this
# on standard input; Python runs with -I and -S, so that what it finds is the distribution's, and nobody else's.

import json
import os
import sys
from urllib.parse import quote

sys.path.append("/usr/lib/python3/dist-packages")

try:
    from pymongo import MongoClient
    from pymongo.errors import OperationFailure, PyMongoError
except ImportError as error:
    sys.exit(f"python3-pymongo can't be used: {error}")

AUTHENTICATION_FAILED = 18


class Refused(Exception):
    """mongod does not take this password."""


def private():
    """Where mongod listens on a socket: from pymongo 4 on, a path has to be part of a URI."""
    return "mongodb://" + quote(wanted["socket"], safe="")


def log_in(user, password, source):
    """A connection of a user. Raises Refused, or another error."""
    # By loopback it is this host's own: its certificate has other names, and one that has ended must not keep
    # out who brings the next.
    tls = {"tls": True, "tlsAllowInvalidCertificates": True} if wanted.get("tls") else {}
    place = {"host": "127.0.0.1", "port": wanted["port"]} if "port" in wanted else {"host": private()}
    # An index can take its time to be made; what only looks must not hang with the server.
    limit = {} if wanted.get("apply") else {"socketTimeoutMS": 10000}
    login = {"username": user, "password": password, "authSource": source}
    client = MongoClient(directConnection=True, serverSelectionTimeoutMS=5000, **place, **login, **tls, **limit)
    try:
        client[source].command("ping")
    except OperationFailure as error:
        if error.code == AUTHENTICATION_FAILED:
            raise Refused from None
        raise
    return client


def log_in_with_one_of(passwords):
    """The administrator's connection with the first password that is taken. Raises Refused, or another error."""
    for password in passwords:
        try:
            return log_in("admin", password, "admin")
        except Refused:
            pass
    raise Refused


def kept():
    """The administrator's password as this host last saw it work, and beside it one that was about to be set: (path, password)."""
    for path in (wanted["kept"], wanted["kept"] + ".new"):
        if os.path.exists(path):
            with open(path, newline="", encoding="utf-8") as file:
                yield path, file.read()


def announce(right=None):
    """Before `wanted["password"]` is set: from here on, the right one is among the two, wherever the run ends.

    `right` is the path of the one that works until then.
    """
    if right is not None and right != wanted["kept"]:
        os.rename(right, wanted["kept"])
    descriptor = os.open(wanted["kept"] + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", newline="", encoding="utf-8") as file:
        file.write(wanted["password"])
        file.flush()
        os.fsync(descriptor)


def words(error):
    """What an error says, without the rest of the server's answer."""
    return (getattr(error, "details", None) or {}).get("errmsg") or str(error)
