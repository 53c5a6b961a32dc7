"""Readings to try the job with, made up: `python -m forecast.seed COUNT [METERS]`

Each meter has a load by day and a weekend, and some noise; hour by hour, back from the last full hour.
"""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, timezone

import numpy as np

from .notify import notify
from .store import database, patiently
from .train import COLLECTION

BATCH = 5000


def main(count: int, meters: int = 20) -> None:
    random = np.random.default_rng(1)
    now = datetime.now(timezone.utc).replace(minute=0, second=0, microsecond=0)
    peaks, sizes = random.integers(0, 24, meters), random.uniform(1, 5, meters)
    collection = database()[COLLECTION]
    made = []
    for number in range(count):
        hours, meter = divmod(number, meters)
        moment = now - timedelta(hours=hours)
        day = 2 + np.cos(2 * np.pi * (moment.hour - peaks[meter]) / 24) - 0.5 * (moment.weekday() > 4)
        made.append({"timestamp": moment, "meter_id": f"meter-{meter}", "value": float(sizes[meter] * day + random.normal(0, 0.2))})
        if len(made) == BATCH or number + 1 == count:
            patiently(lambda: collection.insert_many(made))
            notify(f"wrote {number + 1} of {count} readings")
            made = []


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
