"""The HTTP side. Run it with `gunicorn app.main:app` and the worker class of README.md."""

import logging
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response, WebSocket
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from . import metrics, settings
from .items import Hit, Item, Items, NewItem
from .stores import StoreDown, Stores

SETTINGS = settings.load()

logging.basicConfig(level=SETTINGS.log_level, format="%(levelname)s %(name)s: %(message)s")
for chatty in ("chromadb", "httpx", "httpcore", "pymongo"):
    logging.getLogger(chatty).setLevel(logging.WARNING)


@asynccontextmanager
async def lifespan(app: FastAPI):
    app.state.stores = Stores(SETTINGS)
    yield
    await app.state.stores.close()


# No /docs: its page loads scripts from elsewhere. /openapi.json is there.
app = FastAPI(title="Items", lifespan=lifespan, docs_url=None, redoc_url=None)
app.add_middleware(metrics.Measure)


def stores(request: Request) -> Stores:
    return request.app.state.stores


def items(stores: Annotated[Stores, Depends(stores)]) -> Items:
    return Items(stores)


Limit = Annotated[int, Query(ge=1, le=100)]
TheItems = Annotated[Items, Depends(items)]


@app.post("/items", status_code=201)
async def add(new: NewItem, items: TheItems, response: Response) -> Item:
    item = await items.add(new)
    response.headers["Location"] = f"/items/{item.id}"
    return item


@app.get("/items")
async def newest(items: TheItems, limit: Limit = 20) -> list[Item]:
    return await items.newest(limit)


@app.get("/items/{id}")
async def get(id: str, items: TheItems, response: Response) -> Item:
    item, cached = await items.get(id)
    if item is None:
        raise HTTPException(404, "there is no such item")
    response.headers["X-Cache"] = "hit" if cached else "miss"
    return item


@app.delete("/items/{id}", status_code=204)
async def delete(id: str, items: TheItems) -> None:
    if not await items.delete(id):
        raise HTTPException(404, "there is no such item")


@app.get("/search")
async def search(
    items: TheItems, q: Annotated[str, Query(min_length=1, max_length=1000)], limit: Limit = 10
) -> list[Hit]:
    return await items.search(q, limit)


@app.post("/upload")
async def upload(request: Request) -> dict[str, int]:
    """Counts what it is sent and keeps nothing."""
    count = 0
    async for chunk in request.stream():
        count += len(chunk)
    return {"bytes": count}


@app.websocket("/ws/echo")
async def echo(socket: WebSocket) -> None:
    await socket.accept()
    while (message := await socket.receive())["type"] == "websocket.receive":
        await socket.send({**message, "type": "websocket.send"})


@app.get("/health")
async def health() -> dict[str, str]:
    """This process answers. It asks nobody else."""
    return {"status": "ok", "environment": SETTINGS.environment}


@app.get("/ready")
async def ready(stores: Annotated[Stores, Depends(stores)], response: Response) -> dict[str, str]:
    """Whether the stores answer: 200, or 503 with the kind of error beside the one that does not."""
    answers = await stores.readiness()
    if set(answers.values()) != {"ok"}:
        response.status_code = 503
    return answers


@app.get("/metrics")
def prometheus() -> Response:
    return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)


@app.exception_handler(StoreDown)
async def unavailable(request: Request, down: StoreDown) -> JSONResponse:
    detail = f"{down.store} is not available ({down.reason}), try again"
    return JSONResponse({"detail": detail}, status_code=503, headers={"Retry-After": "5"})
