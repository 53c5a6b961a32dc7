"""The application with its real services, named by the environment as in production."""

import os

import pytest
from starlette.testclient import TestClient

NEEDED = ["MONGO_URI", "MONGO_DB", "REDIS_URL", "CHROMA_SERVER_HOST", "CHROMA_SERVER_PORT"]
missing = [name for name in NEEDED if not os.environ.get(name)]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"no services: {', '.join(missing)} not set")


@pytest.fixture(scope="module")
def app():
    from app.main import app

    return app


@pytest.fixture
def client(app):
    with TestClient(app) as client:
        yield client


@pytest.fixture
def item(client):
    answer = client.post("/items", json={"name": "Anvil", "text": "a heavy iron block", "tags": ["tool"]})
    assert answer.status_code == 201
    yield answer.json()
    client.delete(answer.headers["Location"])


def indexed(client, id):
    """Whether ChromaDB has it: a search would not show an entry that is left over."""

    async def found():
        collection = await client.app.state.stores.index()
        return (await collection.get(ids=[id], include=[]))["ids"]

    return client.portal.call(found) == [id]


def nobody_listens(client, store):
    """The store's client, as if the store were down."""
    stores = client.app.state.stores
    if store == "redis":
        stores.redis.connection_pool.connection_kwargs["port"] = 1
    else:
        stores.settings = stores.settings.model_copy(update={"chroma_server_port": 1})


def test_an_item_lives_in_all_three(client, item):
    path = f"/items/{item['id']}"
    first, second = client.get(path), client.get(path)
    assert [first.headers["X-Cache"], second.headers["X-Cache"]] == ["miss", "hit"]
    assert first.json() == second.json() == item
    assert item in client.get("/items").json()
    assert indexed(client, item["id"])
    hit = client.get("/search", params={"q": "blocks of iron", "limit": 100}).json()[0]
    assert hit["name"] == "Anvil" and 0 < hit["score"] <= 1

    assert client.delete(path).status_code == 204
    assert client.get(path).status_code == 404
    assert client.delete(path).status_code == 404
    assert not indexed(client, item["id"])


def test_ready(client):
    answer = client.get("/ready")
    assert answer.status_code == 200
    assert answer.json() == {"mongodb": "ok", "redis": "ok", "chromadb": "ok"}


def test_without_the_cache_items_are_still_read(client, item):
    nobody_listens(client, "redis")
    assert client.get(f"/items/{item['id']}").json() == item
    answer = client.get("/ready")
    assert answer.status_code == 503
    assert answer.json() == {"mongodb": "ok", "redis": "ConnectionError", "chromadb": "ok"}


def test_without_the_index_nothing_is_stored(client):
    nobody_listens(client, "chromadb")
    before = client.get("/items").json()
    answer = client.post("/items", json={"name": "Feather", "text": "light"})
    assert answer.status_code == 503
    assert answer.json()["detail"].startswith("chromadb is not available")
    assert client.get("/items").json() == before


@pytest.mark.parametrize(
    "wrong", [{}, {"name": "x"}, {"name": " ", "text": "x"}, {"name": "x", "text": "x" * 10_001}]
)
def test_a_wrong_item_is_refused(client, wrong):
    assert client.post("/items", json=wrong).status_code == 422


def test_upload_counts(client):
    assert client.post("/upload", content=iter([b"x" * 1000] * 50)).json() == {"bytes": 50_000}


def test_echo(client):
    with client.websocket_connect("/ws/echo") as socket:
        socket.send_text("hello")
        assert socket.receive_text() == "hello"
        socket.send_bytes(b"\x00\xff")
        assert socket.receive_bytes() == b"\x00\xff"


def test_metrics_count_by_route(client, item):
    client.get(f"/items/{item['id']}")
    text = client.get("/metrics").text
    assert 'http_requests_total{method="GET",route="/items/{id}",status="200"}' in text
    assert item["id"] not in text
