"""Base: who gets in, what is open, how the host keeps itself, and what holds for every role's files and units."""

from __future__ import annotations

import fnmatch
import ipaddress
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from facts.firewall import RULES
from facts.packages import RUNNING_OLD
from groundwork.rows import Absent, Directory, File, Link
from groundwork.templates import render
from operations.swap import PATH as SWAP
from tasks.base import MODULES, SYSCTLS, security_origins

STRANGER = "203.0.113.9"
"""An address that no inventory holds (RFC 5737)."""

LIST_TABLE = "nft -s list table inet groundwork"

REFUSED_ALGORITHMS = (
    "KexAlgorithms=diffie-hellman-group14-sha256",
    "KexAlgorithms=diffie-hellman-group-exchange-sha256",
    "Ciphers=chacha20-poly1305@openssh.com",
    "Ciphers=aes128-cbc",
    "HostKeyAlgorithms=ecdsa-sha2-nistp256",
)


# Who gets in


@pytest.fixture(scope="module")
def knock(base):
    """Log in once more, otherwise than usual. It goes through a tunnel: fail2ban never bans loopback."""
    with base.tunnel(base.settings("base").ssh_port) as port:
        here = {
            "HostName": "127.0.0.1",
            "Port": port,
            "ControlPath": "none",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
        }
        words = [word for name, value in here.items() for word in ("-o", f"{name}={value}")]

        def knock(*options: str) -> subprocess.CompletedProcess:
            return subprocess.run(
                ["ssh", "-F", str(base.ssh_config), *words, *options, base.name, "true"],
                capture_output=True, text=True, timeout=30,
            )  # fmt: skip

        assert knock().returncode == 0, "the inventory's own key must open this way"
        yield knock


def test_a_password_is_not_even_asked_for(knock):
    refused = knock("-o", "PubkeyAuthentication=no")
    assert refused.stderr.strip().endswith("Permission denied (publickey).")


def test_root_is_refused_with_the_key_that_opens_for_others(base, knock):
    if base.settings("base").ssh_root_login != "no":
        pytest.skip("base_ssh_root_login lets root in with a key")
    refused = knock("-l", "root")
    assert refused.returncode == 255
    assert "Permission denied" in refused.stderr


def test_old_algorithms_are_refused(knock):
    for option in REFUSED_ALGORITHMS:
        assert "no matching" in knock("-o", option).stderr, option


NOT_POST_QUANTUM = "does not provide protection against post-quantum attacks"
"""What ssh-audit says of every older key exchange. pyinfra connects by paramiko, which has no other."""


def test_ssh_audit_finds_nothing(base):
    with base.tunnel(base.settings("base").ssh_port) as port:
        done = subprocess.run(
            [Path(sys.executable).parent / "ssh-audit", "--json", "--skip-rate-test", "-p", str(port), "127.0.0.1"],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    found = json.loads(done.stdout)
    found = {kind: {item["algorithm"]: item["notes"] for item in found[kind]} for kind in ("kex", "key", "enc", "mac")}
    assert all(found.values()), "it looked at each kind"
    bad = [
        f"{name}: {word}"
        for algorithms in found.values()
        for name, notes in algorithms.items()
        for word in notes.get("fail", []) + notes.get("warn", [])
        if word != NOT_POST_QUANTUM
    ]
    assert bad == []
    first = next(iter(found["kex"].values()))
    assert "warn" not in first, "clients of today are to take an exchange that is safe from quantum computers"


def test_sshd_is_set_as_declared_for_everybody(base):
    settings = base.settings("base")
    expected = {
        "port": str(settings.ssh_port),
        "permitrootlogin": settings.ssh_root_login,
        "pubkeyauthentication": "yes",
        "passwordauthentication": "no",
        "kbdinteractiveauthentication": "no",
        "permitemptypasswords": "no",
        "hostbasedauthentication": "no",
        "maxauthtries": str(settings.ssh_max_auth_tries),
        "logingracetime": str(settings.ssh_login_grace),
        "x11forwarding": "no",
        "allowagentforwarding": "no",
        "allowtcpforwarding": settings.ssh_tcp_forwarding,
        "allowstreamlocalforwarding": settings.ssh_tcp_forwarding,
        "tcpkeepalive": "no",
        "permittunnel": "no",
        "permituserenvironment": "no",
    }
    people = ["root", base.here.data.get("ssh_user"), *(person.name for person in settings.present)]
    for user in filter(None, people):
        said = base.check(f"sshd -T -C user={user},host=stranger,addr={STRANGER}").splitlines()
        effective = dict(line.split(" ", 1) for line in said if " " in line)
        if effective["permitrootlogin"] == "without-password":
            effective["permitrootlogin"] = "prohibit-password"
        assert {name: effective[name] for name in expected} == expected, user


def test_no_weak_group_is_left_for_the_key_exchange(base):
    assert base.check("awk '!/^#/ && $5 < 3071' /etc/ssh/moduli") == ""


def test_administrators_are_as_declared(base):
    people = base.settings("base").administrators
    if not people:
        pytest.skip("base_administrators is empty")
    for person in people:
        if person.state == "absent":
            assert base.run(f"getent passwd {person.name}").returncode == 2, f"{person.name} is still there"
            continue
        # Debian's sshd reads the second file, too.
        keys = base.run(f"cd ~{person.name}/.ssh && cat authorized_keys authorized_keys2").stdout.splitlines()
        assert {key for key in keys if key and not key.startswith("#")} == set(person.keys)
        modes = base.check(f"cd ~{person.name}/.ssh && stat -c '%U %a' . authorized_keys")
        assert modes.splitlines() == [f"{person.name} 700", f"{person.name} 600"]
        assert "(ALL : ALL) NOPASSWD: ALL" in base.check(f"sudo -l -U {person.name}")


def test_sudo_reads_all_its_files(base):
    said = base.check("visudo -c 2>&1").splitlines()
    assert [line for line in said if not line.endswith(": parsed OK")] == []


def test_nobody_has_an_empty_password(base):
    assert base.check("awk -F: '$2 == \"\" { print $1 }' /etc/shadow") == ""


def test_who_guesses_is_banned_soon(base):
    settings = base.settings("base")
    asked = ("maxretry", "findtime", "bantime", "bantime.increment", "bantime.maxtime")
    said = base.check("; ".join(f"fail2ban-client get sshd {name}" for name in asked)).split()
    assert said == [str(settings.ban_after), "600", str(settings.ban_minutes * 60), "True", str(7 * 86400)]


def test_the_inventory_is_never_banned(base):
    said = base.check("fail2ban-client get sshd ignoreip")
    ignored = {_network(word) for word in said.split() if re.match(r"[0-9a-f]*[.:]", word)}
    wanted = {_network(item) for item in ["127.0.0.0/8", "::1", *base.settings("base").never_banned(base.here)]}
    assert ignored == wanted


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(text, strict=False)


GUESS = """
import socket, subprocess, sys, time
address, port, tries = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
options = "BatchMode=yes StrictHostKeyChecking=no UserKnownHostsFile=/dev/null ConnectTimeout=2".split()
socket.create_connection((address, port), 2).close()
guess = ["ssh", "-p", str(port), *(word for item in options for word in ("-o", item)), f"guest@{address}"]
for _ in range(tries):
    subprocess.run(guess, capture_output=True)
for _ in range(20):
    try:
        socket.create_connection((address, port), 2).close()
    except OSError:
        print("banned")
        break
    time.sleep(0.5)
"""


@pytest.mark.slow
def test_a_guesser_is_really_banned(base, outside):
    if not base.is_lab:
        pytest.skip("gets an address banned: only on lab hosts")
    settings = base.settings("base")
    try:
        said = outside.run(GUESS, base.here.private_address, str(settings.ssh_port), str(settings.ban_after))
        assert said.strip() == "banned"
    finally:
        base.check(f"fail2ban-client unban {outside.address}")


# What is open


def test_the_firewall_is_what_the_settings_say(base):
    """The whole table at once. A network namespace of its own loads the expected one, so that both
    are in nft's own words."""
    settings = base.settings("base")
    row = next(row for row in settings.files(base.here) if row.path == RULES)
    rules = render(row, settings, base.here, secret=lambda name: "").decode()
    expected = base.check(f"unshare --net sh -c 'nft -f - && {LIST_TABLE}'", stdin=rules)
    assert base.check(LIST_TABLE) == expected


def test_only_the_declared_ports_are_accepted(base):
    chain = json.loads(base.check("nft -j list chain inet groundwork input"))["nftables"]
    assert next(item["chain"]["policy"] for item in chain if "chain" in item) == "drop"
    accepting = [item["rule"]["expr"] for item in chain if "rule" in item and {"accept": None} in item["rule"]["expr"]]
    matches = [part["match"] for rule in accepting for part in rule if "match" in part]
    ports = {m["right"] for m in matches if m["left"].get("payload", {}) == {"protocol": "tcp", "field": "dport"}}
    assert ports == {opening.port for opening in base.here.openings() if opening.protocol == "tcp"}


def test_services_run_now_and_after_a_boot(base):
    units = [
        "groundwork-firewall.service",
        "fail2ban.service",
        "unattended-upgrades.service",
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
        "systemd-journald.service",
    ]
    names = " ".join(units)
    assert base.run(f"systemctl is-active {names}").stdout.split() == ["active"] * len(units)
    assert set(base.run(f"systemctl is-enabled {names}").stdout.split()) <= {"enabled", "static"}


# How the host keeps itself


def test_security_updates_and_nothing_else_come_by_themselves(base):
    settings = base.settings("base")
    lines = re.findall(r'^(\S+) "(.*)";$', base.check("apt-config dump"), re.MULTILINE)
    assert [value for name, value in lines if name == "Unattended-Upgrade::Origins-Pattern::"] == security_origins(
        base.here.machine
    )
    assert [value for name, value in lines if name == "Unattended-Upgrade::Allowed-Origins::"] == []
    effective = dict(lines)
    assert effective["APT::Periodic::Update-Package-Lists"] == "1"
    assert effective["APT::Periodic::Unattended-Upgrade"] == "1"
    assert effective["Unattended-Upgrade::Automatic-Reboot"] == ("true" if settings.reboot_time else "false")
    assert effective.get("Unattended-Upgrade::Automatic-Reboot-Time", "now") == (settings.reboot_time or "now")


@pytest.mark.slow
def test_a_rehearsal_of_the_updates_leaves_the_rest_alone(base):
    if not base.is_lab:
        pytest.skip("a rehearsal downloads the packages: only on lab hosts")
    said = base.check("unattended-upgrade --dry-run --debug 2>&1")
    allowed = re.findall(r"^Allowed origins are: (.*)$", said, re.MULTILINE)
    codename = base.here.machine.codename
    expected = [item.replace("${distro_codename}", codename) for item in security_origins(base.here.machine)]
    assert allowed == [", ".join(expected)]
    known = set(re.findall(r"release .*\ba=([^,\n]+)", base.check("apt-cache policy"))) - {"now"}
    refused = set(re.findall(r"^Marking not allowed .* a=([^,]+),", said, re.MULTILINE))
    assert {archive for archive in known if "security" not in archive} <= refused
    upgrades = re.findall(r"^Packages that will be upgraded: (.*)$", said, re.MULTILINE)
    assert not set(" ".join(upgrades).split()) & set(base.check("apt-mark showhold").split())


def test_needrestart_asks_nobody_and_restarts_nothing(base):
    if base.run("command -v needrestart").returncode:
        pytest.skip("needrestart is not installed")
    said = base.check(
        "perl -e 'our %nrconf; do \"/etc/needrestart/needrestart.conf\"; "
        "print join \" \", @nrconf{qw(restart kernelhints ucodehints)}'"
    )
    assert said == "l -1 0"


def test_the_journal_is_kept_and_limited(base):
    settings = base.settings("base")
    lines = base.check("systemd-analyze cat-config systemd/journald.conf").splitlines()
    effective = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    assert effective["Storage"] == "persistent"
    assert effective["SystemMaxUse"] == settings.journal_size
    assert effective["MaxRetentionSec"] == f"{settings.journal_days}day"
    assert base.check("ls /var/log/journal/$(cat /etc/machine-id)/system.journal")
    # What the running journald says of itself, if it is not too long ago.
    log = base.check("journalctl -qu systemd-journald -o cat")
    said = re.findall(r"^System Journal .* max ([0-9.]+[KMGT])", log, re.MULTILINE)
    assert not said or said[-1].replace(".0", "") == settings.journal_size


def test_kernel_settings_are_in_effect(base):
    wanted = {**SYSCTLS, **base.settings("base").sysctls}
    live = dict(line.split(" = ", 1) for line in base.check("sysctl -a 2>/dev/null").splitlines() if " = " in line)
    stored = base.check("systemd-analyze cat-config sysctl.d").splitlines()
    for pattern, value in wanted.items():
        assert f"{pattern} = {value}" in stored
        if base.here.machine.container and not pattern.startswith("net."):
            continue  # the kernel's, and not this host's
        wrong = {name: live[name] for name in fnmatch.filter(live, pattern) if live[name].split() != str(value).split()}
        assert wrong == {}


def test_modules_that_nobody_needs_are_not_loaded(base):
    if base.run("command -v modprobe").returncode:
        pytest.skip("there is no modprobe here")
    effective = base.check("modprobe -c").splitlines()
    assert [name for name in MODULES if f"install {name} /bin/false" not in effective] == []
    if base.here.machine.container:
        return  # which modules are loaded is the kernel owner's to say
    loaded = {line.split()[0] for line in base.check("cat /proc/modules").splitlines()}
    assert not loaded & set(MODULES)


def test_no_core_is_dumped_of_what_people_start(base):
    assert base.run("ulimit -Hc", sudo=False).stdout.strip() == "0"


def test_name_and_time_zone(base):
    settings = base.settings("base")
    if name := settings.hostname_of(base.here):
        assert base.check("uname -n; cat /etc/hostname").split() == [name, name]
    zones = base.check(f"readlink -f /etc/localtime /usr/share/zoneinfo/{settings.timezone}").split()
    assert zones[0] == zones[1]


def test_the_hosts_know_each_other_by_name(base):
    for address, names in base.settings("base").addresses(base.here).items():
        for name in names:
            found = base.check(f"getent ahosts {name}").split()
            assert address in found, f"{name} is {found}"


def test_the_clock_is_right(base):
    if base.here.machine.container:
        pytest.skip("nobody sets the clock in a container")
    assert "Leap status     : Normal" in base.check("chronyc tracking")


def test_there_is_swap_where_memory_is_small(base):
    size = base.settings("base").swap(base.here)
    if not size:
        pytest.skip("none is declared for a host of this memory")
    if base.here.machine.container:
        assert base.check(f"stat -c '%a %U' {SWAP}").strip() == "600 root"
        assert f"{SWAP} none swap" in base.check("cat /etc/fstab")
    else:
        assert len(base.check("cat /proc/swaps").splitlines()) > 1


# What holds for every role


def _rows(base):
    return [row for role in base.here.roles for row in base.settings(role).files(base.here)]


def test_files_have_their_owner_and_mode(base):
    rows = {row.path: row for row in _rows(base) if isinstance(row, (Directory, File))}
    found = base.check("xargs -0 stat -c '%n %U:%G %04a'", stdin="\0".join(rows))
    wanted = {f"{row.path} {row.owner}:{row.group} {row.mode:0>4}" for row in rows.values()}
    assert set(found.splitlines()) == wanted


def test_links_lead_where_they_should_and_what_is_gone_is_gone(base):
    links = {row.path: row.target for row in _rows(base) if isinstance(row, Link)}
    assert base.check("xargs -0 readlink", stdin="\0".join(links)).splitlines() == list(links.values())
    gone = [row.path for row in _rows(base) if isinstance(row, Absent)]
    assert base.run("xargs -0r ls -d", stdin="\0".join(gone)).stdout == ""


def test_nothing_is_left_over_from_a_run(base):
    assert base.run("ls /usr/sbin/policy-rc.d").stdout == ""
    assert base.check("find /etc /usr/local -xdev -name '.*.??????'") == "", "a candidate that never landed"


def test_no_change_waits_for_its_confirmation(base):
    assert base.run("ls -d /var/lib/groundwork/unconfirmed* /run/groundwork/unconfirmed*").stdout == ""
    assert base.check("systemctl list-units --all --no-legend --plain 'groundwork-unconfirmed*'") == ""
    assert base.check("systemctl is-enabled groundwork-rollback.service").strip() == "enabled"


def test_nobody_else_can_write_to_what_we_installed(base):
    places = "/etc /srv /opt /usr/local"
    assert base.check(f"find {places} -xdev ! -type l -perm /o+w ! -perm -1000") == ""


def test_each_unit_of_ours_is_hardened(base):
    written = base.check("cd /etc/systemd/system && grep -rl 'Managed by Groundwork' .").splitlines()
    units = sorted({re.search(r"[^/]+\.service", path).group() for path in written if ".service" in path})
    said = base.check(f"systemd-analyze security --no-pager {' '.join(units)} | grep Overall")
    exposure = dict(re.findall(r"exposure level for (\S+): ([0-9.]+)", said))
    assert sorted(exposure) == units
    assert {unit: level for unit, level in exposure.items() if float(level) > 3.0} == {}


def test_services_run_the_files_that_are_on_disk(base):
    assert base.check("systemctl show '*' -p NeedDaemonReload | sort -u").split() == ["NeedDaemonReload=no"]
    old = [line.split() for line in base.check(RUNNING_OLD).splitlines()]
    outdated = [unit for after, unit in old if after == "restart"]
    assert outdated == [], f"packages were upgraded under them: `systemctl restart {' '.join(outdated)}`"
    if old:
        pytest.skip(f"until a reboot on what was there before the first run's upgrade: {', '.join(unit for _, unit in old)}")


def test_sshd_answers_with_the_installed_version(base):
    port = base.settings("base").ssh_port
    banner = base.check(f"timeout 5 bash -c 'read -r line </dev/tcp/127.0.0.1/{port}; echo $line'")
    # Not the package's version: trixie's 10.0p1 says of itself that it is 10.0p2, and bookworm's leaves out the p1.
    installed = re.search(r"OpenSSH_[^ ,]+", base.check("sshd -V 2>&1 || true")).group()
    assert re.match(rf"SSH-2\.0-{re.escape(installed)}(p[0-9]+)? ", banner)


def test_nothing_has_failed(base):
    state = base.run("systemctl is-system-running").stdout.strip()
    assert state == "running", base.run("systemctl --failed --no-legend").stdout
