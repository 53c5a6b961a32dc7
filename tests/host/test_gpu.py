"""GPU: what the cards say, what keeps the driver as it is, and that a box without a card has nothing of it."""

from __future__ import annotations

import json

import pytest

from facts.gpu import Driver, Smi
from operations.gpu import BLACKLIST, explained, reason


@pytest.fixture
def card(gpu):
    """A host with a card."""
    if not gpu.settings("gpu").card:
        pytest.skip("gpu_card is False")
    return gpu


def _cards(host):
    return Smi().process(host.check(Smi().command()).splitlines())


def test_unattended_upgrades_leave_the_driver_alone(gpu):
    said = gpu.check("apt-config dump Unattended-Upgrade::Package-Blacklist")
    for name in ("nvidia-", "libnv", "cuda-"):
        assert f'"{name}";' in said


def test_a_box_without_a_card_has_no_driver(gpu):
    if gpu.settings("gpu").card:
        pytest.skip("gpu_card is True")
    assert gpu.run("dpkg-query -W -f '${Package}\\n' '*nvidia*'").stdout == ""
    assert gpu.run("docker info --format '{{json .Runtimes}}' | grep nvidia").stdout == ""


def test_module_and_libraries_agree_and_the_cards_are_found(card):
    now = Driver().process(card.check(Driver().command(BLACKLIST)).splitlines())
    found = _cards(card)
    assert explained(found, now) == "" and reason(now) == ""
    assert len(found.cards) >= 1 and {item.driver for item in found.cards} == {now.loaded}
    assert all(item.persistence for item in found.cards)


def test_the_drivers_packages_are_held(card):
    held = set(card.check("apt-mark showhold").split())
    now = Driver().process(card.check(Driver().command(BLACKLIST)).splitlines())
    wanted = card.settings("gpu").wanted(card.here)
    assert set(wanted.held(wanted.packages(now.kernel, now.images), now.images)) <= held


def test_the_limits_are_what_was_set(card):
    settings = card.settings("gpu")
    if settings.power_limit:
        limits = card.check("nvidia-smi --query-gpu=power.limit --format=csv,noheader,nounits").split()
        assert {float(limit) for limit in limits} == {settings.power_limit}
    assert card.check("systemctl is-active groundwork-gpu.service nvidia-persistenced.service").split() == ["active", "active"]


def test_docker_has_the_runtime(card):
    if "docker" not in card.here.roles:
        pytest.skip("no Docker on this host")
    runtimes = json.loads(card.check("docker info --format '{{json .Runtimes}}'"))
    assert runtimes["nvidia"]["path"] == "nvidia-container-runtime"
