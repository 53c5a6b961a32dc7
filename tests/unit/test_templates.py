"""Compiled templates that are kept between runs."""

from __future__ import annotations

import pytest

from groundwork import templates


def test_compiled_templates_are_kept_for_us_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert templates._compiled() is not None
    assert (tmp_path / "groundwork" / "templates").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o777, 0o702])
def test_none_are_kept_where_others_write(tmp_path, monkeypatch, mode):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = tmp_path / "groundwork" / "templates"
    place.mkdir(parents=True)
    place.chmod(mode)
    assert templates._compiled() is None


def test_none_are_kept_where_there_is_no_place(tmp_path, monkeypatch):
    (tmp_path / "groundwork").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert templates._compiled() is None
