import pytest

from app import settings

ENOUGH = {
    "MONGO_URI": "mongodb://user:hunter2@db/",
    "MONGO_DB": "app",
    "REDIS_URL": "redis://:hunter2@cache/0",
    "CHROMA_SERVER_HOST": "vectors",
    "CHROMA_SERVER_PORT": "8000",
}


@pytest.fixture
def environment(monkeypatch):
    for name in settings.Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in ENOUGH.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_enough(environment):
    loaded = settings.load()
    assert loaded.mongo_timeout_ms == 30_000
    assert "hunter2" not in repr(loaded)


@pytest.mark.parametrize("name", ENOUGH)
def test_a_missing_one_is_named(environment, capsys, name):
    environment.setenv(name, "")
    with pytest.raises(SystemExit) as end:
        settings.load()
    assert end.value.code == settings.CANNOT_BOOT
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{name} is not set: it is ")


def test_a_wrong_one_is_named_and_not_shown(environment, capsys):
    environment.setenv("CHROMA_SERVER_PORT", "hunter2")
    with pytest.raises(SystemExit):
        settings.load()
    error = capsys.readouterr().err
    assert error.startswith("CHROMA_SERVER_PORT (the port of ChromaDB) is not valid")
    assert "hunter2" not in error
