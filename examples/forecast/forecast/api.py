"""The backend: answers from the model in MODEL_DIRECTORY, as it was when this process started.

A new version is read by a new process: the unit's reload makes one. Without a model it starts all the same, and
looks again at each question.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import numpy as np
from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel, Field

from .model import Model

DIRECTORY = Path(os.environ.get("MODEL_DIRECTORY", "model"))


@dataclass
class Version:
    """A published version, read whole."""

    model: Model
    metadata: dict
    metrics: dict
    meters: dict[str, int]


_loaded: list[Version] = []


def version() -> Version:
    """The model, or 503 in words."""
    if not _loaded:
        try:
            _loaded.append(_read(DIRECTORY.resolve()))
        except (OSError, ValueError, KeyError) as error:
            raise HTTPException(503, f"there is no model yet in {DIRECTORY} ({type(error).__name__}): train one") from None
    return _loaded[0]


def _read(directory: Path) -> Version:
    """A version; resolved before, so that a new one that is published meanwhile is not mixed in."""
    model = Model.load(directory)
    metadata, metrics = (json.loads((directory / f"{name}.json").read_text()) for name in ("metadata", "metrics"))
    return Version(model, metadata, metrics, {name: number for number, name in enumerate(model.names)})


app = FastAPI(title="Forecast")
TheVersion = Annotated[Version, Depends(version)]


class Question(BaseModel):
    meter_id: str
    timestamp: datetime
    """Without a zone it is UTC."""
    hours: int = Field(default=1, ge=1, le=24 * 31)
    """How many values, an hour apart."""


class Answer(BaseModel):
    meter_id: str
    version: str
    values: list[float]


@app.get("/health")
def health() -> dict[str, str]:
    """This process answers, with a model or without."""
    return {"status": "ok"}


@app.get("/ready")
def ready(found: TheVersion) -> dict[str, str]:
    """Whether there is a model to answer from."""
    return {"version": found.metadata["version"]}


@app.get("/model")
def describe(found: TheVersion) -> dict:
    return {**found.metadata, "metrics": found.metrics}


@app.post("/predict")
def predict(question: Question, found: TheVersion) -> Answer:
    number = found.meters.get(question.meter_id)
    if number is None:
        raise HTTPException(404, "the model knows no such meter")
    moment = question.timestamp if question.timestamp.tzinfo else question.timestamp.replace(tzinfo=timezone.utc)
    seconds = moment.timestamp() + 3600.0 * np.arange(question.hours)
    values = found.model.predict(np.full(question.hours, number), seconds)
    return Answer(meter_id=question.meter_id, version=found.metadata["version"], values=values.tolist())


try:
    version()
except HTTPException:
    pass  # asked again at the first question
