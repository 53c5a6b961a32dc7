"""The application: its environment, its configuration, and what is refused."""

from __future__ import annotations

import configparser
from urllib.parse import urlsplit, unquote

import pytest

from groundwork.preflight import render_errors
from groundwork.secrets import Secret
from groundwork.templates import render
from groundwork.topology import SettingsError, external
from tasks.app import Settings
from tests.unit.conftest import SYSTEMS, make_topology

AWKWARD = 'p@s/s:w"o\\r$d%é`'
MONGODB = {"mongodb_users": [{"name": "grid_user", "database": "urban_grid_ai"}]}


def on(groups, **data):
    """Settings and host of an application."""
    here = make_topology({"one": (groups, {"app_source": "examples/app", **data})}).hosts["one"]
    return here.settings(Settings), here


def rendered(settings, here, name: str, secret=lambda name: AWKWARD) -> str:
    row = next(row for row in settings.files(here) if row.path.endswith(name))
    return render(row, settings, here, secret).decode()


def unquoted(text: str) -> dict[str, str]:
    """An environment file as systemd reads it (systemd.exec(5)): quotes, and backslash before a character."""
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            assert value[0] == value[-1] == '"'
            plain, rest = "", iter(value[1:-1])
            for character in rest:
                plain += next(rest) if character == "\\" else character
            found[name] = plain
    return found


def test_the_environment_is_composed_from_the_topology():
    settings, here = on(["app", "mongodb", "redis", "chromadb"], **MONGODB, environment="lab")
    found = unquoted(rendered(settings, here, "/environment"))
    uri = urlsplit(found["MONGO_URI"])
    assert (uri.username, unquote(uri.password), uri.hostname, uri.port) == ("grid_user", AWKWARD, "127.0.0.1", 27017)
    assert uri.path == "/urban_grid_ai" and "authSource=urban_grid_ai" in uri.query
    assert found["MONGO_DB"] == "urban_grid_ai" and found["MONGO_TIMEOUT_MS"] == "30000"
    redis = urlsplit(found["REDIS_URL"])
    assert (redis.username, unquote(redis.password), redis.port, redis.path) == ("app", AWKWARD, 6379, "/0")
    assert (found["REDIS_HOST"], found["REDIS_PORT"], found["REDIS_DB"]) == ("127.0.0.1", "6379", "0")
    assert (found["CHROMA_SERVER_HOST"], found["CHROMA_SERVER_PORT"]) == ("127.0.0.1", "8000")
    assert (found["ENVIRONMENT"], found["LOG_LEVEL"]) == ("lab", "INFO")
    assert not {"DATABASE_URL", "DB_POOL_SIZE", "AWS_S3_BUCKET"} & set(found)
    assert settings.secrets(here) == [Secret("mongodb/grid_user"), Secret("redis/app")]


def test_neighbours_on_other_hosts_are_found_at_their_private_addresses():
    hosts = {"web": (["app"], {"app_source": "examples/app"}), "data": (["mongodb", "redis"], MONGODB)}
    here = make_topology(hosts).hosts["web"]
    found = here.settings(Settings).variables(here, lambda name: "x")
    assert urlsplit(found["MONGO_URI"]).hostname == found["REDIS_HOST"] == "10.0.0.2"
    assert "CHROMA_SERVER_HOST" not in found


def test_an_external_database():
    rds = external("postgresql", host="db.example.org", port=5433, tls=True)
    settings, here = on(["app"], externals=[rds])
    found = settings.variables(here, lambda name: "p/w")
    assert found["DATABASE_URL"] == "postgresql://app:p%2Fw@db.example.org:5433/app?sslmode=require"
    assert (found["DB_POOL_SIZE"], found["DB_MAX_OVERFLOW"]) == ("20", "10")


def test_what_the_user_adds_wins_and_needs_no_secret_of_ours():
    given = {"REDIS_URL": "redis://elsewhere", "SENTRY_DSN": Secret("app/sentry_dsn"), "DEBUG": False}
    settings, here = on(["app", "redis"], app_environment=given)
    found = settings.variables(here, lambda name: f"value of {name}")
    assert found["REDIS_URL"] == "redis://elsewhere" and found["DEBUG"] == "false"
    assert found["SENTRY_DSN"] == "value of app/sentry_dsn"
    assert settings.secrets(here) == [Secret("app/sentry_dsn")]


def test_only_the_environment_holds_secrets():
    settings, here = on(["app", "redis"])
    assert [row.path for row in settings.files(here) if getattr(row, "secret", False)] == ["/etc/app/environment"]
    assert "password" not in repr(settings)


@pytest.mark.parametrize(
    ("cores", "memory", "given", "expected"),
    [(2, 8192, {}, 5), (2, 512, {}, 3), (8, 4096, {"app_worker_memory": 512}, 6), (1, 256, {}, 1), (4, 4096, {"app_workers": 2}, 2)],
)
def test_workers_by_cores_and_memory(cores, memory, given, expected):
    settings, here = on(["app"], hardware_cores=cores, hardware_memory=memory, **given)
    assert settings.worker_count(here) == expected
    configuration: dict = {}
    exec(rendered(settings, here, "gunicorn.conf.py"), configuration)
    assert configuration["workers"] == expected
    assert configuration["worker_class"] == "uvicorn_worker.UvicornWorker"
    assert configuration["umask"] & 0o007 == 0o007


def test_it_listens_on_tcp_only_for_a_proxy_elsewhere():
    settings, here = on(["app", "nginx"])
    assert settings.binds(here) == ["unix:/run/app/app.sock"]
    hosts = {"one": (["app", "nginx"], {"app_source": "examples/app"}), "two": (["nginx"], {})}
    here = make_topology(hosts).hosts["one"]
    assert here.settings(Settings).binds(here) == ["unix:/run/app/app.sock", "10.0.0.1:8080"]
    assert [(opening.port, opening.networks(4)) for opening in here.openings() if opening.role == "app"] == [
        (8080, ["10.0.0.2"])
    ]


@pytest.mark.parametrize("codename", [codename for _, codename in SYSTEMS])
def test_everything_renders(make_here, codename):
    here = make_here(["app", "nginx"], codename=codename, app_source="examples/app")
    assert list(render_errors(here, here.settings(Settings))) == []


def test_the_unit():
    settings, here = on(["app"], app_module="shop.asgi:create()", app_graceful_seconds=50)
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str
    unit.read_string(rendered(settings, here, "app.service"))
    assert unit["Service"]["ExecStart"].split()[0] == "/srv/app/current/.venv/bin/gunicorn"
    assert unit["Service"]["ExecStart"].endswith("gunicorn.conf.py 'shop.asgi:create()'")
    assert unit["Service"]["MemoryMax"] == f"{here.memory_share('app')}M"
    assert int(unit["Service"]["TimeoutStopSec"]) > 50


def test_a_release_carries_its_environment():
    settings, _ = on(["app"])
    newer, _ = on(["app"], app_python="python3.12")
    assert settings.tree().entries[".venv"].target.startswith("/srv/app/environments/")
    assert settings.tree().id != newer.tree().id


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"app_source": None}, "app_source is not set"),
        ({"app_source": "/nowhere"}, "not a directory"),
        ({"app_source": "examples/frontend"}, "neither requirements.txt nor uv.lock"),
        ({"app_requirements": "lock.txt"}, "lock.txt is not in the source"),
        ({"app_workers": 50}, "app_workers = 50"),
        ({"app_mongodb_user": "nobody", **MONGODB}, "app_mongodb_user = 'nobody'"),
        ({"mongodb_users": []}, "app_mongodb_user and app_mongodb_database are not set"),
    ],
)
def test_what_is_refused_with_a_sentence(data, said):
    settings, here = on(["app", "mongodb"], **{**MONGODB, **data})
    assert said in "\n".join(settings.errors(here))


def test_a_lock_without_gunicorn_is_refused(tmp_path):
    (tmp_path / "requirements.txt").write_text("fastapi==1\nuvicorn==1\n")
    settings, here = on(["app"], app_source=str(tmp_path))
    assert "no gunicorn and no uvicorn-worker" in "\n".join(settings.errors(here))


@pytest.mark.parametrize(
    "data",
    [
        {"app_module": "main"},
        {"app_module": "main:app; rm -rf /"},
        {"app_environment": {"A-B": "x"}},
        {"app_environment": {"A\nB": "x"}},
        {"app_health_path": "health"},
        {"app_keep_releases": 1},
        {"app_log_level": "debug"},
    ],
)
def test_values_that_are_refused(data):
    with pytest.raises(SettingsError, match=next(iter(data))):
        on(["app"], **data)
