"""The application, as its users see it, and as its stores see it."""

from __future__ import annotations

import json
import secrets as random
import time

import pymongo
import pytest
import redis as redis_client
import requests

pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS")  # a placeholder certificate is self-signed


@pytest.fixture
def item(site, app):
    """An item stored through HTTPS, and removed again: only where it is a lab's, and the example's."""
    if not app.is_lab or app.settings("app").source != "examples/app":
        pytest.skip("stores an item: only with the example application on a lab host")
    word = f"groundwork{random.token_hex(6)}"
    body = json.dumps({"name": word, "text": f"a meter called {word}"})
    stored = site.ask("/items", "POST", body=body, headers={"Content-Type": "application/json"})
    assert stored.status == 201, stored.data
    yield {"word": word, **stored.json()}
    site.ask(f"/items/{stored.json()['id']}", "DELETE")


def test_it_is_healthy_and_ready(site, app):
    for path in (app.settings("app").health_path, app.settings("app").ready_path):
        if path:
            answer = site.ask(path)
            assert answer.status == 200, (path, answer.data)


def test_an_item_is_read_back_and_then_from_the_cache(site, item):
    first, second = (site.ask(f"/items/{item['id']}") for _ in range(2))
    assert first.json()["name"] == second.json()["name"] == item["word"]
    assert second.headers["X-Cache"] == "hit"


def test_an_item_is_found_by_searching(site, item):
    found = site.ask(f"/search?q={item['word']}&limit=3").json()
    assert item["id"] in str(found)


def test_the_item_is_in_mongodb(item, mongodb):
    user = mongodb.settings("mongodb").present[0]
    login = {"username": user.name, "password": mongodb.secrets.value(f"mongodb/{user.name}")}
    with mongodb.tunnel(mongodb.settings("mongodb").port) as port:
        with pymongo.MongoClient("127.0.0.1", port, directConnection=True, authSource=user.database, **login) as client:
            assert client[user.database].items.count_documents({"name": item["word"]}) == 1


def test_the_item_is_in_redis_once_it_was_read(site, item, redis):
    site.ask(f"/items/{item['id']}")
    password = redis.secrets.value("redis/app")
    with redis.tunnel(redis.settings("redis").port) as port:
        client = redis_client.Redis("127.0.0.1", port, username="app", password=password)
        keys = [key for key in client.scan_iter() if item["id"].encode() in key]
        assert keys and item["word"].encode() in client.get(keys[0])


def test_the_item_is_in_chromadb(item, chromadb):
    settings = chromadb.settings("chromadb")
    with chromadb.tunnel(settings.port, settings.listens_on(chromadb.here)) as port:
        base = f"http://127.0.0.1:{port}/api/v2/tenants/default_tenant/databases/default_database/collections"
        found = []
        for collection in requests.get(base, timeout=10).json():
            answer = requests.post(f"{base}/{collection['id']}/get", json={"ids": [item["id"]]}, timeout=10)
            found += answer.json()["ids"]
        assert found == [item["id"]]


def test_the_service_is_hardened_and_runs_as_its_own_user(app):
    exposure = app.check("systemd-analyze security --no-pager app.service | tail -n 1")
    assert float(exposure.split(":")[1].split()[0]) <= 3.0, exposure
    users = app.check("ps -o user= -p $(systemctl show -P MainPID app.service)")
    assert users.strip() == "app"


def test_its_environment_is_closed_to_others(app):
    assert app.check("stat -c '%a %U' /etc/app/environment").strip() == "600 root"


def test_the_environment_is_composed_from_the_topology(app):
    names = {line.split("=")[0] for line in app.check("cat /etc/app/environment").splitlines() if "=" in line}
    expected = {"ENVIRONMENT", "LOG_LEVEL"}
    if app.here.peers("mongodb"):
        expected |= {"MONGO_URI", "MONGO_DB"}
    if app.here.peers("redis"):
        expected |= {"REDIS_HOST", "REDIS_PORT", "REDIS_DB", "REDIS_URL"}
    if app.here.peers("chromadb"):
        expected |= {"CHROMA_SERVER_HOST", "CHROMA_SERVER_PORT"}
    if app.here.peers("inference"):
        expected |= {"INFERENCE_URL"}
    assert expected <= names


@pytest.mark.slow
def test_it_comes_back_when_it_dies(app):
    """Asked on the host itself: through nginx, another host of the application would answer."""
    if not app.is_lab:
        pytest.skip("kills the application: only on lab hosts")
    path = app.settings("app").health_path or "/"
    app.check("systemctl kill --signal=KILL app.service")
    for _ in range(60):
        if app.run(f"curl -sf -m 5 --unix-socket /run/app/app.sock http://localhost{path}").returncode == 0:
            return
        time.sleep(0.5)
    pytest.fail("the application did not come back")
