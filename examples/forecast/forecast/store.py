"""MongoDB, across a network that may be cut: what fails is tried again for a while, from where it was."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import pymongo
from pymongo.errors import ConnectionFailure, ExecutionTimeout, PyMongoError

from .notify import notify

T = TypeVar("T")

SECONDS = float(os.environ.get("FORECAST_MONGO_SECONDS", 20))
"""How long one question may take."""
PATIENCE = float(os.environ.get("FORECAST_PATIENCE_SECONDS", 900))
"""How long MongoDB may be away."""
PAUSE = 2
"""Seconds between two tries."""


def database() -> pymongo.database.Database:
    """The database that MONGO_URI and MONGO_DB name; asked when it is first used."""
    try:
        uri, name = os.environ["MONGO_URI"], os.environ["MONGO_DB"]
    except KeyError as error:
        print(f"{error.args[0]} is not set: it says where the readings are", file=sys.stderr)
        raise SystemExit(78) from None  # a wrong configuration: trying again is no use
    return pymongo.MongoClient(uri, tz_aware=True, appname="forecast")[name]


def patiently(ask: Callable[[], T]) -> T:
    """The answer of a question, which may be asked again.

    Raises:
        PyMongoError: when MongoDB was away for longer than PATIENCE, or refuses the question.
    """
    end = time.monotonic() + PATIENCE
    while True:
        try:
            with pymongo.timeout(SECONDS):
                return ask()
        except PyMongoError as error:
            if not (isinstance(error, (ConnectionFailure, ExecutionTimeout)) or error.timeout) or time.monotonic() > end:
                raise
            left = int(end - time.monotonic())
            notify(f"MongoDB can't be reached ({type(error).__name__}); trying for {left} s more")
            time.sleep(PAUSE)
