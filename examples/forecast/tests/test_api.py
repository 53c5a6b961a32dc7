"""The backend: words without a model, answers with one."""

import importlib
import json
import sys

import numpy as np
import pytest
from fastapi.testclient import TestClient

from forecast import model

QUESTION = {"meter_id": "a", "timestamp": "2026-11-24T12:00:00", "hours": 3}


@pytest.fixture
def api(tmp_path, monkeypatch):
    """The application, started with an empty model directory."""
    monkeypatch.setenv("MODEL_DIRECTORY", str(tmp_path))
    sys.modules.pop("forecast.api", None)
    return TestClient(importlib.import_module("forecast.api").app)


def publish(directory):
    seconds = np.arange(0, 20 * 86400, 3600.0)
    readings = model.Readings(seconds, np.zeros(len(seconds), int), np.full(len(seconds), 4.0), ["a"])
    model.fit(readings).save(directory, {"readings": len(seconds)})
    (directory / "metadata.json").write_text(json.dumps({"version": "v1", "model": "load"}))


def test_without_a_model(api):
    assert api.get("/health").status_code == 200
    for answer in (api.get("/ready"), api.get("/model"), api.post("/predict", json=QUESTION)):
        assert answer.status_code == 503 and "there is no model yet" in answer.json()["detail"]


def test_it_answers_from_the_model_once_it_is_there(api, tmp_path):
    publish(tmp_path)
    answer = api.post("/predict", json=QUESTION).json()
    assert answer["version"] == "v1" and answer["values"] == pytest.approx([4, 4, 4], abs=0.01)
    assert api.get("/model").json() == {"version": "v1", "model": "load", "metrics": {"readings": 480}}
    assert api.post("/predict", json={**QUESTION, "meter_id": "x"}).status_code == 404
    assert api.post("/predict", json={**QUESTION, "hours": 0}).status_code == 422
