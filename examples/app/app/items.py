"""Items. MongoDB is the truth: what it does not hold does not exist, whatever the index or the cache say.

So a new item is indexed first and stored last: if either fails the answer is 503, and an index entry
left without its item is never shown. An item is deleted from MongoDB first: if the rest fails the
answer is 503, the cache may show the item until its time is up, and the same DELETE again finishes it.
"""

import asyncio
from datetime import datetime, timezone
from typing import Annotated

from bson import ObjectId
from pydantic import BaseModel, Field, StringConstraints

from .embedding import embed
from .metrics import CACHE
from .stores import CHROMA_SECONDS, StoreDown, Stores, using

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=10_000)]
Tag = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=50)]


class NewItem(BaseModel):
    name: Name
    text: Text
    tags: list[Tag] = Field([], max_length=20)


class Item(NewItem):
    id: str
    created_at: datetime


class Hit(Item):
    score: float = Field(description="1 is the same words, 0 nothing in common")


class Items:
    def __init__(self, stores: Stores):
        self.stores = stores

    async def add(self, new: NewItem) -> Item:
        now = datetime.now(timezone.utc).replace(microsecond=0)
        item = Item(id=str(ObjectId()), created_at=now, **new.model_dump())
        await self._index("upsert", ids=[item.id], embeddings=[embed(f"{item.name} {item.text}")])
        with using("mongodb"):
            await self.stores.items.insert_one(document(item))
        return item

    async def get(self, id: str) -> tuple[Item | None, bool]:
        """The item, if there is one, and whether the cache had it."""
        cached = await self._cached(id)
        CACHE.labels("hit" if cached else "miss").inc()
        if cached:
            return cached, True
        with using("mongodb"):
            found = await self.stores.items.find_one({"_id": id})
        if found is None:
            return None, False
        await self._cache(item := from_document(found))
        return item, False

    async def newest(self, limit: int) -> list[Item]:
        with using("mongodb"):
            found = await self.stores.items.find().sort("_id", -1).limit(limit).to_list()
        return [from_document(each) for each in found]

    async def search(self, query: str, limit: int) -> list[Hit]:
        """The nearest first, without those that have nothing in common with the query."""
        result = await self._index(
            "query", query_embeddings=[embed(query)], n_results=limit, include=["distances"]
        )
        distances = dict(zip(result["ids"][0], result["distances"][0]))
        with using("mongodb"):
            found = await self.stores.items.find({"_id": {"$in": list(distances)}}).to_list()
        hits = [
            Hit(score=round(1 - distances[item.id], 4), **item.model_dump())
            for item in map(from_document, found)
        ]
        return sorted((hit for hit in hits if hit.score > 0), key=lambda hit: -hit.score)

    async def delete(self, id: str) -> bool:
        """Whether it was there."""
        with using("mongodb"):
            result = await self.stores.items.delete_one({"_id": id})
        with using("redis"):
            await self.stores.redis.delete(key(id))
        await self._index("delete", ids=[id])
        return result.deleted_count == 1

    async def _index(self, operation: str, **arguments):
        async def call():
            return await getattr(await self.stores.index(), operation)(**arguments)

        with using("chromadb"):  # whose client has no time limit of its own
            return await asyncio.wait_for(call(), CHROMA_SECONDS)

    async def _cached(self, id: str) -> Item | None:
        try:
            with using("redis"):
                cached = await self.stores.redis.get(key(id))
        except StoreDown:  # a cache that is down is a miss
            return None
        return Item.model_validate_json(cached) if cached else None

    async def _cache(self, item: Item) -> None:
        try:
            with using("redis"):
                ttl = self.stores.settings.cache_ttl_seconds
                await self.stores.redis.set(key(item.id), item.model_dump_json(), ex=ttl)
        except StoreDown:  # the next reader asks MongoDB
            pass


def key(id: str) -> str:
    return f"item:{id}"


def document(item: Item) -> dict:
    return {"_id": item.id, **item.model_dump(exclude={"id"})}


def from_document(found: dict) -> Item:
    return Item(id=found["_id"], **{field: value for field, value in found.items() if field != "_id"})
