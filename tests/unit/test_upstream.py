"""docs/upstream/: each patch applies to the pyinfra that is pinned here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pyinfra
import pyinfra_cli
import pytest
from tests.unit.pyinfra_fake import ROOT

PATCHES = sorted((ROOT / "docs" / "upstream").glob("*.patch"))


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """The sources as they are installed, laid out as pyinfra's repository is; outside of any git repository."""
    root = tmp_path_factory.mktemp("pyinfra")
    for package in (pyinfra, pyinfra_cli):
        installed = Path(package.__file__).parent
        shutil.copytree(installed, root / "src" / installed.name, ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.mark.parametrize("patch", PATCHES, ids=lambda path: path.stem)
def test_a_patch_applies(sources, patch):
    done = subprocess.run(
        ["git", "apply", "--check", "--verbose", "--include=src/*", patch], cwd=sources, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Checking patch src/" in done.stderr


@pytest.mark.parametrize("patch", PATCHES, ids=lambda path: path.stem)
def test_a_patch_has_a_test_and_is_told_of(patch):
    assert "+++ b/tests/" in patch.read_text()
    assert f"({patch.name})" in (patch.parent / "README.md").read_text()
