"""The three stores: how each is reached, how long it is waited for, how its failure is told.

Nothing is asked at start, so the application starts, and recovers, whatever is down: see /ready.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import chromadb
import httpx
import pymongo
from chromadb.errors import ChromaError
from pymongo.errors import PyMongoError
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from .settings import Settings

COLLECTION = "items"
READY_SECONDS = 2
MONGO_READY_SECONDS = 1  # pymongo looks up twice a second, and its own error says more than ours
REDIS_SECONDS = 2
CHROMA_SECONDS = 10
CLOSE_SECONDS = 2

# ValueError is how Chroma's client says that it could not connect.
FAILURES = (PyMongoError, RedisError, ChromaError, httpx.HTTPError, ValueError, OSError, asyncio.TimeoutError)

log = logging.getLogger(__name__)


class StoreDown(Exception):
    """A store failed. Clients learn which and the kind of error; the message, with its addresses, is for the log."""

    def __init__(self, store: str, error: Exception):
        self.store = store
        self.reason = type(error).__name__
        super().__init__(f"{store}: {self.reason}: {error}")


@contextmanager
def using(store: str) -> Iterator[None]:
    try:
        yield
    except FAILURES as error:
        down = StoreDown(store, error)
        log.warning("%s", down)
        raise down from error


class Stores:
    def __init__(self, settings: Settings):
        self.settings = settings
        self.mongo = pymongo.AsyncMongoClient(
            settings.mongo_uri.get_secret_value(),
            maxPoolSize=settings.mongo_max_pool_size,
            timeoutMS=settings.mongo_timeout_ms,
            tz_aware=True,
        )
        self.items = self.mongo[settings.mongo_db]["items"]
        self.redis = Redis.from_url(
            settings.redis_url.get_secret_value(),
            decode_responses=True,
            socket_timeout=REDIS_SECONDS,
            socket_connect_timeout=REDIS_SECONDS,
            retry=Retry(NoBackoff(), 1),  # once, for a pooled connection that a restart has cut
        )
        self._chroma = None

    async def chroma(self):
        """Chroma's client, made when first needed: making it asks the server."""
        if self._chroma is None:
            self._chroma = await chromadb.AsyncHttpClient(
                host=self.settings.chroma_server_host,
                port=self.settings.chroma_server_port,
                settings=chromadb.Settings(anonymized_telemetry=False),
            )
        return self._chroma

    async def index(self):
        """The collection, asked for each time: a short call, and a server restored or emptied needs no restart here."""
        client = await self.chroma()
        return await client.get_or_create_collection(
            COLLECTION, configuration={"hnsw": {"space": "cosine"}}, embedding_function=None
        )

    async def close(self) -> None:
        with pymongo.timeout(CLOSE_SECONDS):  # without it, 30 seconds for a MongoDB that is down
            await self.mongo.close()
        await self.redis.aclose()

    async def readiness(self) -> dict[str, str]:
        """Each store with "ok", or with the kind of error that it gives."""
        checks = {"mongodb": self._ask_mongo, "redis": self.redis.ping, "chromadb": self._ask_chroma}
        answers = await asyncio.gather(*(ask(store, check) for store, check in checks.items()))
        return dict(zip(checks, answers))

    async def _ask_mongo(self) -> None:
        with pymongo.timeout(MONGO_READY_SECONDS):
            await self.items.database.command("ping")

    async def _ask_chroma(self) -> None:
        await (await self.chroma()).heartbeat()


async def ask(store: str, check) -> str:
    try:
        with using(store):
            await asyncio.wait_for(check(), READY_SECONDS)
    except StoreDown as down:
        return down.reason
    return "ok"
