"""The model: a meter's load by hour of the day and day of the week, and the season that all meters share.

Ridge regression, by its normal equations. Small and honest: what it is worth is its error on the last fifth of the
readings, which it has not seen, beside that of each meter's mean.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HOURS, DAYS, HARMONICS = 24, 7, 2
HOUR, DAY, YEAR = 3600, 86400, 365.2425 * 86400
RIDGE = 1.0
HELD_OUT = 0.2
"""Share of the time span, its end, on which the error is measured."""
SEASON_NEEDS = 0.75 * YEAR
"""Seconds of readings below which no season is fitted: it would be a trend, and go astray."""


@dataclass
class Readings:
    """Readings as columns of the same length."""

    seconds: np.ndarray
    """Since the epoch, UTC."""
    meters: np.ndarray
    """Number of the meter: an index of `names`."""
    values: np.ndarray
    names: list[str]

    def part(self, which: np.ndarray) -> Readings:
        """The readings of a mask."""
        return Readings(self.seconds[which], self.meters[which], self.values[which], self.names)


@dataclass
class Model:
    names: list[str]
    base: np.ndarray
    """Mean of each meter."""
    season: np.ndarray
    """Weights of the season's terms, of all meters."""
    weights: np.ndarray
    """Weights of each meter (a row) by hour and day."""

    def predict(self, meters: np.ndarray, seconds: np.ndarray) -> np.ndarray:
        """The load of meters (their numbers) at times."""
        rhythm = np.einsum("ij,ij->i", _rhythm(seconds), self.weights[meters])
        return self.base[meters] + _season(seconds) @ self.season + rhythm

    def save(self, directory: Path, metrics: dict) -> None:
        """Write model.npz and metrics.json."""
        np.savez_compressed(
            directory / "model.npz", names=np.array(self.names), base=self.base, season=self.season, weights=self.weights
        )
        (directory / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Model:
        """Read model.npz. Raises OSError or ValueError where it is not there, or no model."""
        with np.load(directory / "model.npz", allow_pickle=False) as kept:
            return cls([str(name) for name in kept["names"]], kept["base"], kept["season"], kept["weights"])


def fit(readings: Readings) -> Model:
    """A model of readings; every meter has at least one."""
    count = len(readings.names)
    totals = np.bincount(readings.meters, readings.values, count)
    base = totals / np.maximum(np.bincount(readings.meters, minlength=count), 1)
    rest = readings.values - base[readings.meters]
    season = np.zeros(2 * HARMONICS)
    if np.ptp(readings.seconds) >= SEASON_NEEDS:
        season = _ridge(_season(readings.seconds), rest)
    rest = rest - _season(readings.seconds) @ season
    weights = np.zeros((count, HOURS + DAYS))
    rhythm = _rhythm(readings.seconds)
    for meter in range(count):
        own = readings.meters == meter
        weights[meter] = _ridge(rhythm[own], rest[own])
    return Model(readings.names, base, season, weights)


def evaluate(readings: Readings) -> dict[str, float | int]:
    """The error on the last fifth of a model that has not seen it, and of each meter's mean."""
    start, end = readings.seconds.min(), readings.seconds.max()
    seen = readings.seconds <= start + (end - start) * (1 - HELD_OUT)
    known = np.isin(readings.meters, readings.meters[seen])
    train, test = readings.part(seen), readings.part(~seen & known)
    if not len(test.values):
        raise ValueError("all readings are of one moment: there is nothing to learn from")
    model = fit(train)
    wrong = model.predict(test.meters, test.seconds) - test.values
    naive = model.base[test.meters] - test.values
    return {
        "held_out": len(test.values),
        "mean_absolute_error": float(np.abs(wrong).mean()),
        "root_mean_squared_error": float(np.sqrt((wrong**2).mean())),
        "mean_absolute_error_of_the_mean": float(np.abs(naive).mean()),
    }


def _rhythm(seconds: np.ndarray) -> np.ndarray:
    """A one for the hour of the day, and one for the day of the week."""
    whole = seconds.astype(np.int64)
    rows, found = np.arange(len(whole)), np.zeros((len(whole), HOURS + DAYS))
    found[rows, whole % DAY // HOUR] = 1
    found[rows, HOURS + (whole // DAY + 3) % DAYS] = 1  # the epoch was a Thursday
    return found


def _season(seconds: np.ndarray) -> np.ndarray:
    angles = 2 * np.pi * np.outer(seconds / YEAR, np.arange(1, HARMONICS + 1))
    return np.hstack([np.sin(angles), np.cos(angles)])


def _ridge(features: np.ndarray, values: np.ndarray) -> np.ndarray:
    square = features.T @ features + RIDGE * np.eye(features.shape[1])
    return np.linalg.solve(square, features.T @ values)
