"""The model learns what is there to learn, says how wrong it is, and is read back as it was written."""

import json

import numpy as np
import pytest

from forecast import model

HOUR, DAY, YEAR = 3600, 86400, model.YEAR


def readings(days: float, noise: float = 0.0, value=lambda seconds, meter: np.zeros(len(seconds))) -> model.Readings:
    """Hourly readings of two meters."""
    moments = np.arange(0, days * DAY, HOUR)
    seconds, meters = np.tile(moments, 2), np.repeat([0, 1], len(moments))
    order = np.argsort(seconds, kind="stable")
    seconds, meters = seconds[order], meters[order]
    values = value(seconds, meters) + noise * np.random.default_rng(1).normal(size=len(seconds))
    return model.Readings(seconds, meters, values, ["a", "b"])


def by_the_hour(seconds, meters):
    return 10 * meters + np.where(seconds % DAY // HOUR >= 12, 2.0, -2.0) * (1 + meters)


def test_a_rhythm_is_learned_for_each_meter():
    fitted = model.fit(readings(70, value=by_the_hour))
    found = fitted.predict(np.array([0, 0, 1, 1]), np.array([80.25, 80.75, 80.25, 80.75]) * DAY)
    assert found == pytest.approx([-2, 2, 6, 14], abs=0.2)


def test_a_weekend_is_learned():
    weekend = lambda seconds, meters: np.where((seconds // DAY + 3) % 7 > 4, 0.0, 5.0)  # noqa: E731
    fitted = model.fit(readings(140, value=weekend))
    saturday, monday = 16 * 7 * DAY + 2 * DAY, 16 * 7 * DAY + 4 * DAY  # the epoch was a Thursday
    assert fitted.predict(np.array([0, 0]), np.array([saturday, monday], float)) == pytest.approx([0, 5], abs=0.5)


def test_the_season_is_learned_from_a_year_and_not_from_less():
    season = lambda seconds, meters: 3 * np.sin(2 * np.pi * seconds / YEAR)  # noqa: E731
    assert model.fit(readings(800, value=season)).predict(np.array([0]), np.array([0.25 * YEAR]))[0] == pytest.approx(3, abs=0.3)
    assert not model.fit(readings(90, value=season)).season.any()


def test_the_error_is_that_of_what_was_not_seen():
    metrics = model.evaluate(readings(100, noise=0.5, value=by_the_hour))
    assert metrics["held_out"] == pytest.approx(0.2 * 2 * 2400, rel=0.02)
    assert metrics["root_mean_squared_error"] == pytest.approx(0.5, rel=0.1)
    assert metrics["mean_absolute_error_of_the_mean"] > 2.5


def test_what_can_not_be_learned_from_is_refused():
    with pytest.raises(ValueError, match="nothing to learn"):
        model.evaluate(readings(1 / 24))


def test_it_is_read_back_as_it_was_written(tmp_path):
    fitted = model.fit(readings(30, value=by_the_hour))
    fitted.save(tmp_path, {"readings": 3})
    again = model.Model.load(tmp_path)
    moments, meters = np.arange(10.0) * HOUR, np.zeros(10, int)
    assert again.names == ["a", "b"] and (again.predict(meters, moments) == fitted.predict(meters, moments)).all()
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"readings": 3}
    (tmp_path / "model.npz").write_bytes(b"no model")
    with pytest.raises(ValueError):
        model.Model.load(tmp_path)
