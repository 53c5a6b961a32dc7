"""The job: readings from MongoDB, a model into MODEL_DIRECTORY. `python -m forecast.train`"""

from __future__ import annotations

import os
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from . import model
from .notify import notify
from .store import database, patiently

COLLECTION = "meter_readings"
BATCH = int(os.environ.get("FORECAST_BATCH", 5000))
"""Readings a question, on average: they are asked for in slices of time, so that one can be asked for again."""
FIELDS = {"_id": False, "timestamp": True, "meter_id": True, "value": True}


def main() -> None:
    directory = Path(os.environ["MODEL_DIRECTORY"])
    began = time.monotonic()
    notify("asking MongoDB how much there is to read")
    readings = read(database()[COLLECTION])
    read_seconds = time.monotonic() - began
    notify(f"read all {len(readings.values)} readings of {len(readings.names)} meters; fitting")
    began = time.monotonic()
    metrics = model.evaluate(readings)
    fitted = model.fit(readings)
    metrics |= {
        "readings": len(readings.values),
        "meters": len(readings.names),
        "from": _moment(readings.seconds.min()),
        "to": _moment(readings.seconds.max()),
        "read_seconds": round(read_seconds, 3),
        "fit_seconds": round(time.monotonic() - began, 3),
    }
    fitted.save(directory, metrics)
    notify(f"done: mean absolute error {metrics['mean_absolute_error']:.4g} on {metrics['held_out']} readings held out")


def read(collection) -> model.Readings:
    """All readings, in the order of their time."""
    count = patiently(collection.estimated_document_count)
    ends = [patiently(lambda: collection.find_one(sort=[("timestamp", way)], projection=FIELDS)) for way in (1, -1)]
    if not count or None in ends:
        print(f"there are no readings in {collection.full_name}", file=sys.stderr)
        raise SystemExit(78)  # trying again is no use before somebody makes them
    first, last = (end["timestamp"] for end in ends)
    slices = max(1, -(-count // BATCH))
    edges = [first + (last - first) * number / slices for number in range(slices)]
    numbers: dict[str, int] = {}
    seconds, meters, values = [], [], []
    for number, start in enumerate(edges):
        until = {"$lt": edges[number + 1]} if number + 1 < slices else {"$lte": last}
        wanted = {"timestamp": {"$gte": start, **until}}
        for found in patiently(lambda: list(collection.find(wanted, FIELDS, batch_size=BATCH))):
            seconds.append(found["timestamp"].timestamp())
            meters.append(numbers.setdefault(str(found["meter_id"]), len(numbers)))
            values.append(float(found["value"]))
        notify(f"read {len(values)} of {count} readings ({100 * (number + 1) // slices} %)")
    order = np.argsort(seconds, kind="stable")
    columns = (np.array(column)[order] for column in (seconds, meters, values))
    return model.Readings(*columns, names=list(numbers))


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(float(seconds), timezone.utc).isoformat()


if __name__ == "__main__":
    main()
