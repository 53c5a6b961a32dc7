"""The inventories that we ship say nothing that is refused, and the settings page is up to date."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.host.conftest import unasked

from groundwork import context, reference
from groundwork.preflight import render_errors, setting_errors
from groundwork.roles import all_roles

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["lab", "lab_cluster", "lab_hybrid", "static"])
def test_a_shipped_inventory_is_accepted(name):
    topology = context.load(ROOT / "inventories" / f"{name}.py")
    assert list(setting_errors(topology)) == []
    for here in topology.hosts.values():
        for role in here.roles:
            assert list(render_errors(here, here.settings(all_roles()[role]))) == []


def test_the_settings_page_is_what_the_settings_say():
    assert (ROOT / "docs" / "settings.md").read_text() == reference.text(), "run `make docs`"


def test_no_setting_is_refused_with_a_pattern():
    """pydantic's own words for it are the regular expression: `matching` says what is allowed."""
    for settings in all_roles().values():
        assert '"pattern"' not in str(settings.model_json_schema(mode="validation")).replace("'", '"'), settings


def test_every_setting_has_a_description():
    for line in reference.text().splitlines():
        if line.startswith("| `"):
            assert not line.endswith("|  |"), line


def test_nothing_in_the_tree_is_named_as_a_host_of_a_registry():
    """Clients know their registries; a lab host copies its controller's sources."""
    names = ["deb.debian" + ".org", "pypi" + ".org", "registry.npmjs" + ".org", "files.pythonhosted" + ".org"]
    for directory, folders, files in os.walk(ROOT):
        folders[:] = [f for f in folders if f not in (".git", ".venv", "node_modules", "__pycache__")]
        for file in files:
            text = (Path(directory) / file).read_bytes().decode(errors="replace")
            assert not [name for name in names if name in text], f"{directory}/{file}"


def test_the_verification_says_that_sudo_wants_a_password(make_here):
    said = unasked(make_here(["base"], ssh_user="dora"), "sudo: a terminal is required to read the password\nsudo: a password is required\n")
    assert said.startswith("one: sudo asks dora for a password, and tests/host has none: set ssh_user")
    assert unasked(make_here(["base"]), "ssh: no route\n").endswith("as the ssh_user: ssh: no route")
