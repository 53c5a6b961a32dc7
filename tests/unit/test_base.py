"""The role base: what it writes is read back by the programs that read it, where they are here."""

from __future__ import annotations

import base64
import configparser
import hashlib
import os
import re
import shutil
import subprocess
import time
from types import SimpleNamespace

import pytest

from pyinfra.api import StringCommand

from facts import accounts as facts_accounts
from facts.accounts import Accounts
from facts.sysctl import Sysctls
from facts.units import Unit
from groundwork.preflight import render_errors
from groundwork.rows import File
from groundwork.settings import HostSettings
from groundwork.templates import render
from groundwork.topology import SettingsError
from operations import accounts, firewall, service, sshd, sysctl, unconfirmed, wait
from operations.host import BEGIN, END, with_block
from tasks.base import Settings, rules
from tests.unit.conftest import SYSTEMS, machine, make_topology
from tests.unit.pyinfra_fake import ROOT, inventory, run

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA anna@laptop"


def files(here) -> dict[str, str]:
    settings = here.settings(Settings)
    return {
        row.path: render(row, settings, here, str).decode()
        for row in settings.files(here)
        if isinstance(row, File)
    }


def errors(here) -> list[str]:
    return list(here.settings(Settings).errors(here))


def refused(make_here, **data) -> str:
    with pytest.raises(SettingsError) as caught:
        make_here(["base"], **data).settings(Settings)
    return str(caught.value)


def program(name: str) -> str:
    path = shutil.which(name)
    if not path:
        pytest.skip(f"{name} is not installed here")
    return path


@pytest.mark.parametrize("codename", [codename for _, codename in SYSTEMS])
def test_every_template_renders_with_defaults_and_with_everything_set(make_here, codename):
    for here in (
        make_here(["base"], codename),
        make_here(
            ["base"],
            codename,
            base_hostname="db1.example.org",
            base_timezone="Europe/Berlin",
            base_time_servers=["ntp.example.org", "10.0.0.1"],
            base_administrators=[{"name": "anna", "keys": [KEY]}, {"name": "bert", "state": "absent"}],
            base_ssh_port=2222,
            ssh_port=2222,
            base_reboot_time="04:00",
            base_ssh_sources=["10.0.0.0/8"],
        ),
    ):
        assert list(render_errors(here, here.settings(Settings))) == []
        assert errors(here) == []


# sshd


def test_sshd_takes_keys_only(make_here):
    text = files(make_here(["base"]))["/etc/ssh/sshd_config.d/00-groundwork.conf"]
    lines = [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]
    assert len({name for name, _ in lines}) == len(lines), "sshd takes the first of two, so there must be one"
    values = dict(lines)
    for name, value in {
        "Port": "22",
        "PermitRootLogin": "no",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "X11Forwarding": "no",
        "AllowAgentForwarding": "no",
    }.items():
        assert values[name] == value
    offered = ",".join(values[name] for name in ("KexAlgorithms", "Ciphers", "MACs", "HostKeyAlgorithms"))
    assert not re.search(r"sha1|-cbc|3des|arcfour|nistp|group14|hmac-sha2-512,", offered)


@pytest.mark.parametrize(
    "codename, newer", [("jammy", set()), ("bookworm", {"RequiredRSASize"}), ("trixie", {"RequiredRSASize", "mlkem768x25519-sha256"})]
)
def test_sshd_is_told_nothing_that_its_version_does_not_know(make_here, codename, newer):
    text = files(make_here(["base"], codename))["/etc/ssh/sshd_config.d/00-groundwork.conf"]
    assert {word for word in ("RequiredRSASize", "mlkem768x25519-sha256") if word in text} == newer


def test_only_where_systemd_listens_for_sshd_its_socket_follows_the_port(make_here):
    path = "/etc/systemd/system/ssh.socket.d/groundwork.conf"
    moved, unmoved = make_here(["base"], "noble", base_ssh_port=2222), make_here(["base"], "noble")
    assert path not in files(moved)
    for here in (moved, unmoved):
        here.machine = machine("noble", ssh_socket=True)
    assert files(moved)[path].splitlines()[-3:] == ["ListenStream=", "ListenStream=2222", "BindIPv6Only=both"]
    assert path not in files(unmoved)


CLOUD_INIT = """#!/bin/sh
case "$*" in
  *--wait*) sleep {seconds}; exit {code} ;;
  *) echo "status: error"; echo; echo "('scripts_user', RuntimeError('failed'))"; exit {code} ;;
esac
"""


@pytest.mark.parametrize(
    ("code", "seconds", "says"),
    [
        (0, 0, ["exit 0"]),
        (2, 0, ["status: error", "('scripts_user', RuntimeError('failed'))", "exit 2"]),
        (1, 0, ["status: error", "('scripts_user', RuntimeError('failed'))", "exit 1"]),
        (0, 5, ["status: error", "('scripts_user', RuntimeError('failed'))", "exit 124"]),
    ],
)
def test_cloud_init_is_waited_for_and_no_longer_than_said(tmp_path, code, seconds, says):
    stub = tmp_path / "cloud-init"
    stub.write_text(CLOUD_INIT.format(code=code, seconds=seconds))
    stub.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", wait.cloud_init(1)], env=environment, capture_output=True, text=True, timeout=4)
    assert done.stdout.splitlines() == says


@pytest.mark.parametrize(
    ("output", "refused"),
    [(["exit 0"], False), (["a warning", "exit 2"], False), (["an error", "exit 1"], False), (["running", "exit 124"], True), ([], True)],
)
def test_only_a_cloud_init_that_does_not_end_stops_the_run(monkeypatch, output, refused):
    said = []
    answer = SimpleNamespace(run_shell_command=lambda *_, **__: (True, SimpleNamespace(stdout_lines=output)))
    monkeypatch.setattr(wait, "host", answer)
    monkeypatch.setattr(wait, "state", SimpleNamespace(is_executing=True))
    monkeypatch.setattr(wait, "report", said.append)
    commands = list(wait.first_boot._inner(booting=True))
    assert bool(commands) == refused
    if refused:
        assert "still works after 600 s" in commands[0] and commands[0].endswith("exit 1")
    assert any("an error" in line for line in said) == ("an error" in output)
    assert list(wait.first_boot._inner(booting=False)) == []


@pytest.mark.parametrize(
    ("service", "socket", "wanted"),
    [
        ({"newest": 2.0}, {"active": "inactive"}, ["systemctl reload ssh.service"]),
        ({"newest": 2.0}, {}, ["systemctl restart ssh.service"]),
        ({"newest": 2.0}, {"newest": 2.0}, ["systemctl daemon-reload; systemctl stop ssh.service; systemctl restart ssh.socket"]),
        ({"active": "inactive"}, {"newest": 2.0}, ["systemctl daemon-reload; systemctl stop ssh.service; systemctl restart ssh.socket"]),
        ({"active": "inactive", "newest": 2.0}, {}, []),
        ({}, {}, []),
        ({}, {"active": "inactive", "newest": 2.0}, []),
    ],
)
def test_what_is_reloaded_and_what_restarted_follows_from_who_listens(monkeypatch, service, socket, wanted):
    monkeypatch.setattr(sshd, "report", lambda message: None)
    units = [Unit(**{"loaded": True, "active": "active", "started": 1.0, **unit}) for unit in (service, socket)]
    commands = list(sshd._reload(*units, port=22))
    assert [command[: len(start)] for command, start in zip(commands, wanted, strict=True)] == wanted


@pytest.mark.parametrize(
    "data, key",
    [
        ({"ssh_password": "x"}, "ssh_password"),
        ({"ssh_user": "root"}, "ssh_user"),
        ({"base_ssh_port": 2222}, "base_ssh_port"),
        ({"ssh_port": 2222}, "ssh_port"),
        ({"ssh_user": "anna", "base_administrators": [{"name": "anna", "state": "absent"}]}, "base_administrators"),
        ({"base_administrators": [{"name": "anna"}]}, "base_administrators"),
        ({"base_administrators": [{"name": "root", "keys": [KEY]}]}, "base_administrators"),
        ({"base_administrators": [{"name": "anna", "keys": [KEY]}] * 2}, "base_administrators"),
    ],
)
def test_what_would_lock_out_is_refused(make_here, data, key):
    found = errors(make_here(["base"], **data))
    assert len(found) == 1 and found[0].startswith(f"{key}: ")


def test_the_key_that_groundwork_connects_with_must_stay(make_here, tmp_path):
    (tmp_path / "id.pub").write_text("ssh-ed25519 AAAAother me\n")
    data = {"ssh_user": "anna", "ssh_key": str(tmp_path / "id"), "base_administrators": [{"name": "anna", "keys": [KEY]}]}
    assert "is not among the keys" in errors(make_here(["base"], **data))[0]
    (tmp_path / "id.pub").write_text(f"{KEY}-elsewhere\n")
    assert errors(make_here(["base"], **data)) == []


def test_a_key_without_its_public_half_beside_it_must_stay_too(make_here, tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "id"], check=True)
    own = (tmp_path / "id.pub").read_text().strip()
    (tmp_path / "id.pub").unlink()
    data = {"ssh_user": "anna", "ssh_key": str(tmp_path / "id")}
    assert "is not among the keys" in errors(make_here(["base"], **data, base_administrators=[{"name": "anna", "keys": [KEY]}]))[0]
    assert errors(make_here(["base"], **data, base_administrators=[{"name": "anna", "keys": [KEY, own]}])) == []


def _rsa(bits: int) -> str:
    number = (1 << (bits - 1)).to_bytes(bits // 8 + 1, "big")
    blob = b"".join(len(part).to_bytes(4, "big") + part for part in (b"ssh-rsa", b"\x01\x00\x01", number))
    return f"ssh-rsa {base64.b64encode(blob).decode()} anna"


@pytest.mark.parametrize("key", [KEY, _rsa(2048), f'from="10.0.0.0/8",command="echo ssh-keys are fine" {KEY}'])
def test_keys_that_are_taken(make_here, key):
    here = make_here(["base"], base_administrators=[{"name": "anna", "keys": [key]}])
    assert here.settings(Settings).users()[0].keys == (key,)


@pytest.mark.parametrize(
    "key, why",
    [
        (KEY.split()[1], "not one line"),
        (KEY[:50], "cut off"),
        (KEY.replace("ssh-ed25519", "ssh-rsa"), "another kind"),
        (_rsa(1024), "less than 2048 bits"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "not one line"),
        (f"{KEY}\n{KEY}", "not one line"),
    ],
)
def test_keys_that_are_refused(make_here, key, why):
    assert why in refused(make_here, base_administrators=[{"name": "anna", "keys": [key]}])


# Firewall


def _cluster(**data):
    return make_topology(
        {
            "web": (["nginx", "app"], {"private_address": "10.0.0.1"}),
            "data": (["mongodb", "docker"], {"private_address": "10.0.0.2", **data}),
        }
    )


def test_the_firewall_opens_the_flows_and_nothing_else():
    data = _cluster(base_ssh_sources=["192.0.2.0/24", "2001:db8::/48"]).hosts["data"]
    assert data.settings(Settings).openings(data)["host"][:2] == [
        'ip saddr { 192.0.2.0/24 } tcp dport 22 accept comment "base"',
        'ip6 saddr { 2001:db8::/48 } tcp dport 22 accept comment "base"',
    ]
    web = data.topology.hosts["web"]
    assert web.settings(Settings).openings(web)["host"][0] == 'tcp dport 22 accept comment "base"', "one's own sources"


def test_published_ports_are_asked_by_the_port_that_the_client_knows():
    data = _cluster(flows=[{"source": "app", "role": "docker", "port": 8080}]).hosts["data"]
    published = data.settings(Settings).openings(data)["published"]
    assert published == ['ip saddr { 10.0.0.1 } meta l4proto tcp ct original proto-dst 8080 accept comment "docker"']


def test_overlapping_networks_are_joined():
    networks = ["10.0.0.0/8", "10.1.0.0/16", "192.0.2.4"]
    here = make_topology({"one": ([], {"base_ssh_sources": networks})}).hosts["one"]
    assert rules(here.openings()[0], "tcp dport", here)[0].startswith("ip saddr { 10.0.0.0/8, 192.0.2.4 } ")


def test_a_source_nobody_knows_is_refused(monkeypatch):
    from groundwork import context
    from groundwork.preflight import setting_errors

    topology = make_topology({"one": (["base"], {"base_ssh_sources": ["office"]})})
    monkeypatch.setitem(context._made, "topology", topology)
    assert ["base_ssh_sources: source 'office'" in error for error in setting_errors(topology)] == [True]


def test_nft_takes_the_rules(tmp_path):
    nft = program("nft")
    if os.geteuid():
        pytest.skip("nft -c asks the kernel, which wants root")
    everything = _cluster(
        base_ssh_sources=["10.0.0.0/8", "10.1.0.0/16", "2001:db8::/48", "0.0.0.0/1"],
        flows=[
            {"source": "internet", "role": "docker", "port": 9090},
            {"source": "app", "role": "docker", "port": 9091},
        ],
    )
    for here in everything.hosts.values():
        path = tmp_path / "firewall.nft"
        path.write_text(files(here)["/etc/groundwork/firewall.nft"])
        assert "flush ruleset" not in path.read_text()
        subprocess.run([nft, "-c", "-f", path], check=True)


# The rest


def test_apt_takes_security_updates_only(make_here, tmp_path):
    path = tmp_path / "52groundwork"
    base = 'Unattended-Upgrade::Allowed-Origins { "${distro_id}:${distro_codename}-updates"; };\n'
    path.write_text(base + files(make_here(["base"], "noble", base_reboot_time="04:00"))["/etc/apt/apt.conf.d/52groundwork"])
    shown = subprocess.run(
        [program("apt-config"), "dump"], env={**os.environ, "APT_CONFIG": str(path)}, check=True, capture_output=True, text=True
    ).stdout
    assert re.findall(r'^Unattended-Upgrade::Allowed-Origins:: .*', shown, re.M) == []
    origins = re.findall(r'^Unattended-Upgrade::Origins-Pattern:: "(.*)"', shown, re.M)
    assert origins and all(re.search(r"archive=\S+-security", origin) for origin in origins)
    assert 'Unattended-Upgrade::Automatic-Reboot-Time "04:00"' in shown


def test_fail2ban_and_journald_get_what_an_ini_reader_reads(make_here):
    written = files(make_here(["base"], base_ssh_sources=["192.0.2.0/24"], base_ban_never=["198.51.100.7"]))
    jail = configparser.ConfigParser(interpolation=None)
    jail.read_string(written["/etc/fail2ban/jail.d/groundwork.local"])
    assert jail["DEFAULT"]["ignoreip"].split()[2:] == ["10.0.0.1", "192.0.2.0/24", "198.51.100.7"]
    assert jail["sshd"]["backend"] == "systemd"
    journal = configparser.ConfigParser()
    journal.read_string(written["/etc/systemd/journald.conf.d/groundwork.conf"])
    assert journal["Journal"]["SystemMaxUse"] == "500M"


def test_only_those_present_get_sudo(make_here):
    people = [{"name": "anna", "keys": [KEY]}, {"name": "bert", "state": "absent"}]
    text = files(make_here(["base"], base_administrators=people))["/etc/sudoers.d/groundwork"]
    assert [line for line in text.splitlines() if not line.startswith("#")] == ["anna ALL=(ALL:ALL) NOPASSWD: ALL"]


@pytest.mark.parametrize("memory, swap", [(1024, 1024), (1910, 1024), (2048, 0), (16384, 0)])
def test_swap_where_memory_is_short(make_here, memory, swap):
    here = make_here(["base"], hardware_memory=memory)
    assert here.settings(HostSettings).hardware_memory == memory
    assert here.settings(Settings).swap(here) == swap


def test_hosts_know_each_other_by_their_private_addresses():
    topology = make_topology({"web.example.org": ([], {}), "192.0.2.9": ([], {}), "data": ([], {"base_hostname": "db1"})})
    here = topology.hosts["data"]
    assert here.settings(Settings).addresses(here) == {"10.0.0.1": ["web.example.org", "web"], "10.0.0.3": ["db1", "data"]}
    nameless = topology.hosts["192.0.2.9"]
    assert nameless.settings(Settings).hostname_of(nameless) is None


def test_etc_hosts_keeps_what_is_not_ours_and_settles():
    before = ["127.0.0.1 localhost", "127.0.1.1 one", "192.0.2.1 printer"]
    once = with_block(before, {"10.0.0.1": ["one"]})
    assert once == ["127.0.0.1 localhost", "192.0.2.1 printer", BEGIN, "10.0.0.1 one", END]
    assert with_block([*once, "192.0.2.2 scanner"], {"10.0.0.9": ["two"]})[1:] == [
        "192.0.2.1 printer", "192.0.2.2 scanner", BEGIN, "10.0.0.9 two", END,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [
        {"base_timezone": "Mars/Base"},
        {"base_reboot_time": "24:00"},
        {"base_journal_size": "lots"},
        {"base_ssh_sources": []},
        {"base_ssh_root_login": "yes"},
        {"base_sysctls": {"net.core; reboot": 1}},
    ],
)
def test_values_that_are_refused(make_here, data):
    assert refused(make_here, **data).startswith(next(iter(data)))


# Confirmed, or put back


@pytest.mark.parametrize("seconds", [9, 601])
def test_the_time_to_confirm_has_bounds(make_here, seconds):
    assert refused(make_here, base_confirm_seconds=seconds).startswith("base_confirm_seconds")


def test_what_says_who_gets_in_is_put_back_where_nobody_confirms_it(make_here):
    here = make_here(["base"], "noble", base_ssh_port=2222, ssh_port=2222, base_administrators=[{"name": "anna", "keys": [KEY]}])
    settings = here.settings(Settings)
    assert set(settings.kept(here)) == {
        "/etc/groundwork/firewall.nft",
        "/etc/sudoers.d/groundwork",
        "/etc/ssh/sshd_config.d/00-groundwork.conf",
        "/etc/systemd/system/ssh.socket.d/groundwork.conf",
    }
    assert not {row.path for row in settings.configuration(here)} & set(settings.kept(here))


def people(monkeypatch, answer: list[str], *users: accounts.User, **more) -> tuple[list[str], list[str]]:
    """Commands, and what is reported, where a host answers so."""
    said, found = [], Accounts().process(answer)
    monkeypatch.setattr(accounts, "report", said.append)
    monkeypatch.setattr(accounts, "host", SimpleNamespace(get_fact=lambda fact, keys_of=(): found))
    commands = accounts.users._inner(users=users, **more)
    return [item if isinstance(item, str) else item.get_raw_value() for item in commands], said


ANNA = accounts.User("anna", "/home/anna", shell="/bin/bash", keys=("ssh-ed25519 AAAA anna",))


def test_a_person_who_lives_elsewhere_stays_there_and_the_keys_are_kept_and_written_there(monkeypatch):
    lives = ["U|anna:x:1001:1001::/srv/anna:/bin/bash", "G|anna:x:1001:"]
    commands, _ = people(monkeypatch, [*lives, "O|anna|anna"], ANNA, before="guard keep R 60 /etc/a")
    assert len(commands) == 1 and "/srv/anna/.ssh/authorized_keys" in commands[0] and "/home/anna" not in commands[0]
    assert "guard keep R 60 /etc/a /srv/anna/.ssh/authorized_keys /srv/anna/.ssh/authorized_keys2 " in commands[0]
    # With no home there is nothing to leave alone.
    commands, _ = people(monkeypatch, [*lives, "O|anna|"], ANNA)
    assert "usermod --shell /bin/bash --home /home/anna anna" in commands and "/home/anna/.ssh" in commands[-1]


def test_no_key_is_written_into_anothers_home(monkeypatch):
    other = accounts.User("bob", "/home/bob", shell="/bin/bash", keys=("ssh-ed25519 AAAA bob",))
    commands, said = people(monkeypatch, ["U|anna:x:1001:1001::/:/bin/bash", "G|anna:x:1001:", "O|anna|root"], ANNA, other)
    assert len(commands) == 1 and "their home / is root" in commands[0] and commands[0].endswith("exit 1") and said == []
    # Their own home, which became root's when they were removed, is theirs again.
    commands, _ = people(monkeypatch, ["U|anna:x:1001:1001::/home/anna:/bin/bash", "G|anna:x:1001:", "O|anna|root"], ANNA)
    assert "chown -hR anna: /home/anna" in commands[0]


def test_who_is_removed_takes_nobody_elses_keys_along(monkeypatch, tmp_path):
    """Their home is another's: what is run is run, with nothing that would end anybody."""
    (tmp_path / ".ssh").mkdir()
    keys = tmp_path / ".ssh/authorized_keys"
    keys.write_text("another's\n")
    own = os.getuid() or 1001
    os.chown(tmp_path, own, -1)
    for uid, stays in ((own + 1, True), (own, False)):
        (command,), _ = people(monkeypatch, [f"U|anna:x:{uid}:1001::{tmp_path}:/bin/bash", "G|anna:x:1001:"], absent=["anna"])
        none = "".join(f"{program}() {{ :; }}; " for program in ("usermod", "userdel", "loginctl", "timeout", "systemctl", "chown", "chmod"))
        subprocess.run(["bash", "-c", f"pkill() {{ return 1; }}; {none}{command}"], check=True)
        assert keys.exists() is stays


def test_who_loses_sudo_and_still_gets_in_is_named(monkeypatch):
    both = ["U|anna:x:1001:1001::/home/anna:/bin/bash", "G|anna:x:1001:", "S|anna", "S|gone"]
    assert people(monkeypatch, both) == ([], []), "what makes the users of services says nothing of administrators"
    _, said = people(monkeypatch, both, administrators=True)
    assert len(said) == 1 and said[0].startswith("user anna: ") and '{"name": "anna", "state": "absent"}' in said[0]
    present = [*both, "O|anna|anna", "F|anna", "K|anna|ssh-ed25519 AAAA anna"]
    assert people(monkeypatch, present, ANNA, administrators=True) == ([], [])
    assert [line for line in people(monkeypatch, both, absent=["anna"], administrators=True)[1] if "loses the sudo" in line] == []


def test_who_has_sudo_by_us_is_read_from_our_file(tmp_path, make_here, monkeypatch):
    here = make_here(["base"], base_administrators=[{"name": "anna", "keys": [KEY]}, {"name": "b_ob-2", "keys": [KEY]}])
    settings = here.settings(Settings)
    [row] = settings.sudo()
    (tmp_path / "sudoers").write_bytes(render(row, settings, here, secret=str))
    monkeypatch.setattr(facts_accounts, "SUDOERS", tmp_path / "sudoers")
    done = subprocess.run(["sh", "-c", Accounts().command()], capture_output=True, text=True, check=True)
    assert Accounts().process(done.stdout.splitlines()).sudo == ["anna", "b_ob-2"]


def test_a_dry_run_says_that_a_change_will_be_confirmed(tmp_path):
    done = run(inventory(tmp_path, ["base"]), "deploy.py", "--dry")
    assert "will be confirmed by a new connection within 60 s" in done.stderr


@pytest.mark.parametrize("said, status", [([], 0), ({"success": False, "stderr": "put back"}, 1)])
def test_a_host_without_ssh_is_confirmed_as_it_is(tmp_path, said, status):
    path = inventory(tmp_path, ["base"], base_confirm_seconds=10)
    text = path.read_text().replace('"fake_responses": {', f'"fake_responses": {{"guard confirm": {said!r}, ')
    path.write_text(text.replace('"command -v"', '"guard state": ["rolled back", "the live firewall"], "command -v"'))
    done = run(path, "deploy.py", "-y")
    assert done.returncode == status, done.stderr[-2000:]
    assert "no way in to try" in done.stderr and "Traceback" not in done.stderr
    assert ("the host has put back what was there" in done.stderr) == bool(status)


@pytest.fixture
def guard(tmp_path):
    """`guard("keep", …)`: the host's own script, on paths of the test's own and without a systemd or an nft."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("systemctl", "systemd-run", "nft"):
        tool = tools / name
        tool.write_text(f'#!/bin/sh\necho {name} "$@" >>{tmp_path}/called\n[ "$1" != is-active ]\n')
        tool.chmod(0o755)
    text = (ROOT / "files" / "base" / "guard").read_text()
    for place in ("/var/lib/groundwork", "/run/groundwork", "/etc/groundwork"):
        text = text.replace(place, f"{tmp_path}{place}")
        (tmp_path / place[1:]).mkdir(parents=True)
    script = tmp_path / "guard"
    script.write_text(text)

    def guard(*words: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
        return subprocess.run(["sh", script, *words], env=environment, capture_output=True, text=True, timeout=20)

    return guard


def test_the_oldest_of_a_run_comes_back_with_its_mode(guard, tmp_path):
    old, new = tmp_path / "an old file", tmp_path / "new"
    old.write_text("first\n")
    old.chmod(0o440)
    assert guard("keep", "run1", "10", str(old), str(new)).returncode == 0
    old.chmod(0o644)
    old.write_text("second\n")
    new.write_text("new\n")
    assert guard("keep", "run1", "10", str(old), str(new)).returncode == 0
    old.write_text("third\n")
    assert guard("rollback").returncode == 0
    assert (old.read_text(), old.stat().st_mode & 0o777, new.exists()) == ("first\n", 0o440, False)
    assert guard("state", "run1").stdout.splitlines() == ["rolled back", str(old), str(new)]
    assert guard("confirm", "run1").returncode == 3, "too late"
    again = guard("keep", "run1", "10", str(old))
    assert again.returncode == 1 and str(old) in again.stderr, "a run that was put back changes no more"
    assert not (tmp_path / "var/lib/groundwork/unconfirmed").exists()


def test_only_the_run_that_changed_it_confirms_a_change(guard, tmp_path):
    path = tmp_path / "file"
    path.write_text("old\n")
    assert guard("keep", "run1", "10", str(path)).returncode == 0
    path.write_text("new\n")
    assert "another run" in guard("keep", "run2", "10", str(path)).stderr
    assert guard("confirm", "run2").returncode == 3
    assert guard("confirm", "run1").returncode == 0
    assert guard("rollback").returncode == 0
    assert path.read_text() == "new\n"
    assert "systemctl stop groundwork-unconfirmed.timer" in (tmp_path / "called").read_text()


def test_nothing_is_changed_where_no_timer_can_be_had(guard, tmp_path):
    (tmp_path / "tools" / "systemd-run").write_text("#!/bin/sh\nexit 1\n")
    assert guard("keep", "run1", "10", str(tmp_path / "file")).returncode != 0


def test_a_keep_that_fails_half_way_leaves_nothing_to_put_back(guard, tmp_path):
    path = tmp_path / "file"
    path.write_text("old\n")
    cp = tmp_path / "tools" / "cp"
    cp.write_text("#!/bin/sh\necho no space left >&2\nexit 1\n")
    cp.chmod(0o755)
    done = guard("keep", "run1", "10", str(path))
    assert done.returncode != 0 and "no space left" in done.stderr
    assert not (tmp_path / "var/lib/groundwork/unconfirmed").exists()
    assert not (tmp_path / "run/groundwork/unconfirmed").exists()


def test_a_timer_that_comes_late_puts_nothing_back_after_the_run_kept_anew(guard, tmp_path):
    path = tmp_path / "file"
    path.write_text("old\n")
    assert guard("keep", "run1", "60", str(path)).returncode == 0
    path.write_text("new\n")
    assert guard("expire").returncode == 0 and path.read_text() == "new\n"
    assert guard("keep", "run1", "0", str(path)).returncode == 0
    assert guard("expire").returncode == 0 and path.read_text() == "old\n"


def test_what_is_not_loaded_is_not_what_was_there_before(guard, tmp_path):
    rules, loaded = tmp_path / "etc/groundwork/firewall.nft", tmp_path / "run/groundwork/firewall.loaded"

    def load() -> None:
        loaded.write_text(f"{hashlib.sha256(rules.read_bytes()).hexdigest()}  -\ntable\n")

    def write_and_roll_back(run: str) -> str:
        assert guard("keep", run, "10", str(rules)).returncode == 0
        rules.write_text("changed\n")
        assert guard("rollback").returncode == 0
        return rules.read_text()

    rules.write_text("old\n")
    load()
    assert guard("keep", "run1", "10", str(rules)).returncode == 0
    rules.write_text("confirmed\n")
    load()
    assert guard("confirm", "run1").returncode == 0
    rules.write_text("never loaded\n")
    assert write_and_roll_back("run2") == "confirmed\n"
    rules.write_text("loaded by somebody's hand\n")
    load()
    assert write_and_roll_back("run3") == "loaded by somebody's hand\n"


def test_a_rollback_reloads_the_sshd_that_this_run_had_reloaded(guard, tmp_path):
    path, called = tmp_path / "file", tmp_path / "called"
    path.write_text("old\n")
    for number, reloaded in (("run1", False), ("run2", True)):
        assert guard("keep", number, "10", str(path)).returncode == 0
        if reloaded:
            (tmp_path / "var/lib/groundwork/unconfirmed/sshd").touch()
        assert guard("rollback").returncode == 0
        assert ("reload-or-restart ssh.service" in called.read_text()) == reloaded


def test_a_rollback_that_fails_is_told_with_the_way_out(guard, tmp_path):
    path = tmp_path / "gone" / "file"
    path.parent.mkdir()
    path.write_text("old\n")
    assert guard("keep", "run1", "10", str(path)).returncode == 0
    shutil.rmtree(path.parent)
    done = guard("settle")  # at once: the timer is gone
    assert done.returncode == 1 and "put-back" in done.stderr and "No such file" in done.stderr
    assert "guard rollback" in done.stderr and "sudo rm -r" in done.stderr
    path.parent.mkdir()
    assert guard("settle").returncode == 0 and path.read_text() == "old\n"


@pytest.mark.parametrize("allowed", [True, False])
def test_each_change_is_made_only_where_the_host_keeps(tmp_path, allowed):
    out = tmp_path / "out"
    keep = f"sh -c 'cat; {str(allowed).lower()}' </dev/null"
    commands = [
        f"set -e; echo one >{out}",
        StringCommand(f"set -e; trap 'echo end >>{out}' EXIT; cat >>{out}; false; echo never >>{out}", _stdin="two\nthree"),
    ]
    codes = [
        subprocess.run(
            ["sh", "-c", command if isinstance(command, str) else command.get_raw_value()],
            input="" if isinstance(command, str) else command.connector_arguments["_stdin"],
            text=True,
        ).returncode
        for command in unconfirmed.guarded(keep, commands)
    ]
    assert codes == ([0, 1] if allowed else [1, 1])
    assert (out.read_text() if out.exists() else "") == ("one\ntwo\nthreeend\n" if allowed else "")


def test_what_a_command_reads_is_there_before_it_is_allowed(tmp_path):
    [command] = unconfirmed.guarded(f"touch {tmp_path}/kept", [StringCommand("cat >/dev/null", _stdin="x")])
    process = subprocess.Popen(["sh", "-c", command.get_raw_value()], stdin=subprocess.PIPE)
    time.sleep(0.3)
    assert not (tmp_path / "kept").exists()
    process.communicate(b"x")
    assert process.returncode == 0 and (tmp_path / "kept").exists()


def test_the_firewall_is_loaded_anew_on_probation_only(monkeypatch):
    monkeypatch.setattr(service, "report", lambda message: None)
    stale = Unit(loaded=True, active="active", enabled="enabled", started=1.0, newest=2.0, newest_path="/etc/systemd/system/x")
    assert list(service._running(service.Service("x.service", running=None, restart=False), stale)) == []
    assert "restart" in list(service._running(service.Service("x.service", running=None), stale))[0]


def test_systemd_reads_its_units_once_for_all_that_are_enabled(monkeypatch):
    units = {name: Unit(loaded=True, active="inactive", enabled="disabled") for name in ("a.service", "b.service")}
    monkeypatch.setattr(service.declared, "units", lambda reads: units)
    monkeypatch.setattr(service, "state", SimpleNamespace(is_executing=True))
    monkeypatch.setattr(service, "report", lambda message: None)
    commands = list(service.services._inner([service.Service(name) for name in units]))
    assert commands.index("systemctl daemon-reload") == 2 and commands.count("systemctl daemon-reload") == 1
    assert all(command.startswith("systemctl enable --quiet --no-reload ") for command in commands[:2])
    assert all("systemctl restart" in command for command in commands[3:]) and len(commands) == 5


NO_SETTINGS = ["kernel.hostnam", "net.core.somaxcon", "net.ipv4.conf.lo.forwardin", "net.ipv4.conf.*.forwardin"]
NOT_KNOWN = ["kernel.none_such.x", "net.netfilter.nf_none_such", "net.nf_none_such", "net.ipv4.conf.none0.forwarding"]


def test_a_kernel_setting_that_is_none_is_told_from_one_whose_module_is_not_loaded(tmp_path):
    fact = Sysctls()
    keys = ["kernel.hostname", "net.core.somaxconn", "net.ipv4.conf.*.forwarding", *NO_SETTINGS, *NOT_KNOWN]
    done = subprocess.run(["sh", "-c", fact.command(keys, str(tmp_path / "none"))], capture_output=True, text=True)
    assert done.returncode == 0
    found = fact.process(done.stdout.splitlines())
    assert [key for key in keys if sysctl._is_misspelled(found, key, container=False)] == NO_SETTINGS
    # A container sees a part of net.core.
    assert [key for key in keys if sysctl._is_misspelled(found, key, container=True)] == [NO_SETTINGS[0], *NO_SETTINGS[2:]]
    assert sysctl._nearest(found, "net.core.somaxcon") == " (did you mean net.core.somaxconn?)"
    assert sysctl._nearest(found, "net.core.somaxconn") == sysctl._nearest(found, "net.nf_none_such") == ""


@pytest.mark.parametrize(
    ("arrived", "connects", "listens", "stops"),
    [(22, 22, 2222, True), (22, None, 2222, True), (22, 2222, 22, False), (22, 443, 2222, False), (2222, 2222, 2222, False), (None, None, 2222, False)],
)
def test_a_move_of_sshd_stops_where_its_key_is_not_known_at_the_new_port(monkeypatch, arrived, connects, listens, stops):
    """Not where something in front forwards another port, and not where no ssh came in."""
    data = {"ssh_port": connects} if connects else {}
    answers = SimpleNamespace(get_fact=lambda fact, **given: firewall.Found(port=arrived), connector_data={}, data=data)
    monkeypatch.setattr(firewall, "host", answers)
    monkeypatch.setattr(firewall, "current", lambda: None)
    monkeypatch.setattr(firewall, "unknown_at", lambda host, here, port: f"not known at {port}: type this")
    commands = list(firewall.way_in._inner(networks=None, port=listens))
    assert len(commands) == stops and all(f"from port 22 to {listens}, and nothing was changed" in item for item in commands)
