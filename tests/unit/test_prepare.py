"""The whole deploy, prepared on every supported system without a host."""

from __future__ import annotations

import json

import pytest
from tests.unit.pyinfra_fake import ALL_ROLES, SYSTEMS, group_data, inventory, run

from groundwork.roles import ORDER


@pytest.mark.parametrize("codename", SYSTEMS)
def test_every_role_is_prepared(tmp_path, codename):
    group_data(tmp_path, "all", ALL_ROLES)
    own = {"mongodb_series": "8.0", "mongodb_repository": "http://mirror.example/apt"} if codename == "trixie" else {}
    path = inventory(tmp_path, list(ORDER[1:]), codename, **own)
    done = run(path, "deploy.py", "--dry")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Detected changes" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("codename", "listens"), [("noble", True), ("bookworm", False)])
def test_where_systemd_listens_for_sshd_its_socket_is_told_the_port(tmp_path, codename, listens):
    path = inventory(tmp_path, ["base"], codename, base_ssh_port=2222, ssh_port=22)
    done = run(path, "deploy.py", "--dry")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("/etc/systemd/system/ssh.socket.d/groundwork.conf: new" in done.stderr) == listens


def test_no_operation_is_without_a_name(tmp_path):
    """An operation without a name prints its arguments."""
    group_data(tmp_path, "all", ALL_ROLES)
    done = run(inventory(tmp_path, list(ORDER[1:])), "deploy.py", "--debug-operations")
    assert done.returncode == 0, done.stderr
    for module in ("files.table", "apt.packages", "service.services", "accounts.users", "uv.environment"):
        assert module not in done.stdout


def _installs(path, deploy: str) -> list[str]:
    done = run(path, deploy, "--dry", "--json")
    assert done.returncode == 0, done.stderr
    return [item["name"] for item in json.loads(done.stdout)["plan"] if item["name"].split(" | ")[-1] in ("Repositories", "Packages")]


def test_the_packages_of_all_roles_come_in_one_transaction_and_those_of_a_role_alone_with_it(tmp_path):
    group_data(tmp_path, "all", ALL_ROLES)
    path = inventory(tmp_path, [role for role in ORDER[1:] if role != "gpu"])
    assert _installs(path, "deploy.py") == ["All roles | Repositories", "All roles | Packages"]
    assert _installs(path, "tasks.mongodb.mongodb") == ["MongoDB | Repositories", "MongoDB | Packages"]
    assert _installs(path, "tasks.redis.redis") == ["Redis | Packages"]


@pytest.mark.parametrize("role", ORDER)
def test_one_role_alone(tmp_path, role):
    group_data(tmp_path, "all", ALL_ROLES)
    done = run(inventory(tmp_path, [role, "mongodb", "redis"]), f"tasks.{role}.{role}", "--dry")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("/var/lib/groundwork/base: written" in done.stderr) == (role == "base")


def test_no_secret_is_in_what_is_printed(tmp_path):
    group_data(tmp_path, "all", ALL_ROLES)
    path = inventory(tmp_path, list(ORDER[1:]))
    for arguments in (["--dry", "-vvv", "--diff", "--debug"], ["--debug-operations"], ["--dry", "--json"], ["-y", "-vvv"]):
        done = run(path, "deploy.py", *arguments)
        assert "pa:ss/w@rd" not in done.stdout + done.stderr, arguments
        assert "pa%3Ass" not in done.stdout + done.stderr, arguments
    done = run(path, "debug-inventory")
    assert done.returncode == 0 and "pa:ss" not in done.stdout + done.stderr
