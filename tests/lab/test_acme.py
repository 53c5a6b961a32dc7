"""Certificates by ACME, from an authority that asks as Let's Encrypt does: pebble, over port 80."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from tests.lab.conftest import ROOT, Lab

WEB, CA, ELSEWHERE = "10.87.0.51", "10.87.0.52", "10.87.0.53"
SHOP, NEWS = "shop.acme.test", "news.acme.test"
LIVE = "/etc/letsencrypt/live/groundwork"
RENEWAL = "/etc/letsencrypt/renewal/groundwork.conf"

HOST = """
from lab import lab_host

{group} = [lab_host({name!r}, {address!r}, **{data!r})]
"""

PEBBLE = {
    "pebble": {
        "listenAddress": "0.0.0.0:14000",
        "managementListenAddress": "127.0.0.1:15000",
        "certificate": "/root/authority.pem",
        "privateKey": "/root/authority.key",
        "httpPort": 80,
        "tlsPort": 443,
    }
}

# The package's test authority answers DNS for the domains; on its own port 80 somebody else answers.
AUTHORITY = """
set -e
apt-get -qq update; DEBIAN_FRONTEND=noninteractive apt-get -qq -y install pebble >/dev/null
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=authority \
    -addext subjectAltName=IP:{address} -keyout /root/authority.key -out /root/authority.pem 2>/dev/null
echo '{config}' >/root/pebble.json
systemd-run --quiet --unit=names pebble-challtestsrv -defaultIPv4 '' -defaultIPv6 '' -dns01 :53 -http01 :80 \
    -https01 '' -tlsalpn01 ''
systemd-run --quiet --unit=pebble -E PEBBLE_VA_NOSLEEP=1 -E PEBBLE_WFE_NONCEREJECT=0 -E PEBBLE_AUTHZREUSE=0 \
    pebble -config /root/pebble.json -dnsserver 127.0.0.1:53
for n in $(seq 100); do curl -sk https://127.0.0.1:14000/dir && break; sleep 0.1; done
cat /root/authority.pem
"""


def write(directory: Path, group: str, name: str, address: str, **data) -> str:
    path = directory / f"{name}_lab.py"
    path.write_text(HOST.format(group=group, name=name, address=address, data=data))
    return str(path)


@dataclass
class Authority:
    """A host with pebble on it, which is no part of the stack."""

    lab: Lab
    directory: Path

    def names(self, **addresses: str | None) -> None:
        """Where the domains lead: `names(shop=WEB)`; None for a name that there is not."""
        for name, address in addresses.items():
            told = {"host": f"{name}.acme.test.", **({"addresses": [address]} if address else {})}
            path = "add-a" if address else "clear-a"
            self.lab.ssh("ca1", f"curl -sf -d '{json.dumps(told)}' http://127.0.0.1:8055/{path}")

    def asked(self) -> int:
        """How many requests it has had."""
        return int(self.lab.ssh("ca1", "sudo journalctl -u pebble -o cat | grep -c -E ' (GET|POST|HEAD) /' || true").stdout)

    def root(self) -> str:
        return self.lab.ssh("ca1", "curl -sk https://127.0.0.1:15000/roots/0").stdout


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    directory = tmp_path_factory.mktemp("acme")
    lab = Lab(write(directory, "elsewhere", "ca1", CA))
    lab.fresh()
    script = AUTHORITY.format(address=CA, config=json.dumps(PEBBLE))
    done = subprocess.run(
        [sys.executable, "-m", "lab", "ssh", "ca1", "sudo sh"],
        cwd=ROOT, input=script, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (directory / "authority.pem").write_text(done.stdout[done.stdout.index("-----BEGIN") :])
    return Authority(lab, directory)


@dataclass
class Web:
    """The host with nginx."""

    lab: Lab
    authority: Authority

    def declare(self, *domains: str, certificate: str | None = "acme") -> None:
        """Write the inventory: these domains, this certificate."""
        write(
            self.authority.directory, "nginx", "web1", WEB,
            nginx_frontend="examples/frontend",
            nginx_domains=list(domains),
            nginx_tls_certificate=certificate,
            nginx_acme_email="webmaster@acme.test",
            nginx_acme_terms_agreed=True,
            nginx_acme_directory=f"https://{CA}:14000/dir",
            nginx_acme_authority=str(self.authority.directory / "authority.pem"),
        )  # fmt: skip

    def served(self, name: str = SHOP) -> x509.Certificate:
        """The certificate that a client is shown; for a moment after a reload, nginx's old workers still take some."""
        before, now = None, self._shown(name)
        while now != before:
            time.sleep(1)
            before, now = now, self._shown(name)
        return now

    @staticmethod
    def _shown(name: str) -> x509.Certificate:
        context = ssl._create_unverified_context()
        with socket.create_connection((WEB, 443), 10) as plain, context.wrap_socket(plain, server_hostname=name) as tls:
            return x509.load_der_x509_certificate(tls.getpeercert(binary_form=True))

    def trusted(self, *names: str) -> None:
        """A client that trusts the authority, and nobody else, comes in by each name."""
        for name in names:
            context = ssl.create_default_context(cadata=self.authority.root())
            with socket.create_connection((WEB, 443), 10) as plain, context.wrap_socket(plain, server_hostname=name):
                pass

    def renew(self) -> None:
        """What certbot's timer starts, with a certificate that is due."""
        due = "renew_before_expiry = 9999 days"
        self.ssh(f"sudo sh -c '[ ! -s {RENEWAL} ] || grep -q ^renew_before {RENEWAL} || sed -i \"1i {due}\" {RENEWAL}'")
        self.ssh("sudo systemctl start certbot.service")

    def ssh(self, command: str, check: bool = True) -> str:
        return self.lab.ssh("web1", command, check=check).stdout


def is_placeholder(certificate: x509.Certificate) -> bool:
    return "Groundwork placeholder" in certificate.subject.rfc4514_string()


def names(certificate: x509.Certificate) -> set[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return set(found.get_values_for_type(x509.DNSName))


@pytest.fixture(scope="module")
def web(authority) -> Web:
    """A bare host, made into one that serves a domain with a certificate of the authority: in one run."""
    path = authority.directory / "web1_lab.py"
    found = Web(Lab(str(path)), authority)
    found.declare(SHOP)
    authority.names(shop=WEB)
    found.lab.fresh()
    found.ssh(f"echo nameserver {CA} | sudo tee /etc/resolv.conf")
    found.lab.deploy()
    return found


def test_one_run_brings_a_bare_host_its_certificate(web):
    web.trusted(SHOP)
    assert names(web.served()) == {SHOP}
    assert web.served().public_key().curve.name == "secp256r1"


def test_the_second_run_changes_nothing_and_asks_nobody(web, authority):
    before = authority.asked()
    assert before > 0
    assert web.lab.changes() == []
    assert authority.asked() == before


def test_the_host_is_what_is_declared(web):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/host/test_nginx.py", "--inventory", web.lab.inventory]
        + ["-k", "certificate or authority or closed or leads or configuration"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout


def test_no_key_can_be_read_by_others(web):
    keys = "find /etc/letsencrypt -type f \\( -name 'privkey*' -o -name private_key.json \\)"
    assert len(web.ssh(f"sudo {keys}").splitlines()) == 2
    assert web.ssh(f"sudo {keys} \\( -perm /077 -o ! -user root \\)") == ""


# Renewal


class Connection(http.client.HTTPSConnection):
    """To the host's address, by the domain's name."""

    def connect(self) -> None:
        plain = socket.create_connection((self.host, 443), 20)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = ssl._create_unverified_context().wrap_socket(plain, server_hostname=SHOP)


@dataclass
class Client(threading.Thread):
    """Asks steadily: over one connection for as long as it is kept, or over a new one each time."""

    keep: bool
    statuses: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    reopened: int = 0
    enough: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self):
        super().__init__(daemon=True)

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        connection, used = Connection(WEB), False
        while not self.enough.wait(0.01):
            try:
                connection.request("GET", "/", headers={"Host": SHOP})
                answer = connection.getresponse()
                answer.read()
                self.statuses.append(answer.status)
                used = self.keep and not answer.will_close
            except (OSError, http.client.HTTPException) as error:
                # As every client does (RFC 9112, 9.3.1): a kept connection that was closed before one byte
                # of the answer came is opened again, once. On a new one it is a failure.
                if used and isinstance(error, (http.client.RemoteDisconnected, ConnectionError)):
                    self.reopened += 1
                else:
                    self.failures.append(repr(error))
                used = False
            if not used:
                connection.close()
                connection = Connection(WEB)


def answered(clients: list[Client], more: int) -> None:
    """Wait until each client has that many answers more."""
    wanted = [len(client.statuses) + more for client in clients]
    end = time.monotonic() + 60
    while any(len(client.statuses) < count for client, count in zip(clients, wanted)):
        assert time.monotonic() < end, [(len(client.statuses), client.failures[:3]) for client in clients]
        time.sleep(0.05)


def test_no_request_is_lost_while_the_timers_unit_renews(web):
    before = web.served().serial_number
    clients = [Client(keep) for keep in (True, True, False, False)]
    for client in clients:
        client.start()
    try:
        answered(clients, 10)
        web.renew()
        answered(clients, 10)
    finally:
        for client in clients:
            client.enough.set()
        for client in clients:
            client.join(30)
    assert [client.failures for client in clients] == [[]] * 4
    assert [set(client.statuses) for client in clients] == [{200}] * 4
    assert max(client.reopened for client in clients) <= 1
    assert web.served().serial_number != before
    web.trusted(SHOP)
    assert web.lab.changes() == []


# Domains


def test_domains_that_do_not_lead_here_are_refused_and_nobody_is_asked(web, authority):
    before, asked = web.served(), authority.asked()
    web.declare(SHOP, NEWS, "far.acme.test", "none.acme.test")
    authority.names(news=CA, far=ELSEWHERE)
    refused = web.lab.deploy(check=False)
    assert refused.returncode == 1 and "asking https://" not in refused.stderr
    for said in (
        f"{NEWS} leads to {CA} (another answers there, with 200)",
        f"far.acme.test leads to {ELSEWHERE} (nobody answers there on port 80)",
        "none.acme.test does not resolve",
        f"it must lead to web1, port 80, here or by an address that is passed on to {WEB}",
        "the certificate that nginx serves was not touched",
    ):
        assert said in refused.stderr, refused.stderr
    assert f"{SHOP} leads" not in refused.stderr and "Traceback" not in refused.stderr
    assert authority.asked() == asked
    assert web.served() == before


def test_a_domain_that_is_added_comes_into_the_certificate(web, authority):
    web.declare(SHOP, NEWS)
    authority.names(news=None)
    authority.names(news=WEB)
    asked = authority.asked()
    said = web.lab.pyinfra("--dry", web.lab.inventory, "deploy.py").stderr
    assert f"https://{CA}:14000/dir will be asked, if each domain leads here (the one there is for {SHOP})" in said
    assert authority.asked() == asked, "--dry asks nobody"
    web.lab.deploy()
    assert names(web.served()) == {SHOP, NEWS}
    web.trusted(SHOP, NEWS)
    assert web.lab.changes() == []


# Other certificates


def _provided(directory: Path) -> tuple[str, dict[str, str]]:
    """A certificate of the user's, and the environment that holds its key."""
    path = directory / "provided.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "90", "-subj", "/CN=provided"]
        + ["-addext", f"subjectAltName=DNS:{SHOP},DNS:{NEWS}", "-keyout", "-", "-out", str(path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return str(path), {"GROUNDWORK_SECRET_NGINX_TLS_KEY": made.stdout}


def test_certificates_are_exchanged_and_back(web, authority, monkeypatch):
    """Each in one run. What ACME leaves does not come back by itself, and is not thrown away."""
    path, environment = _provided(authority.directory)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ours, asked = web.served(), authority.asked()
    for certificate in (None, path):
        web.declare(SHOP, NEWS, certificate=certificate)
        web.lab.deploy()
        now = web.served()
        assert is_placeholder(now) is (certificate is None) and ("provided" in now.subject.rfc4514_string()) is (certificate == path)
        web.renew()
        assert web.served() == now, "certbot's timer does not put its own over it"
        assert web.lab.changes() == []
        kept = web.ssh(f"sudo openssl x509 -in {LIVE}/cert.pem -noout -serial").split("=")[1]
        assert int(kept, 16) == ours.serial_number
    web.declare(SHOP, NEWS)
    web.lab.deploy()
    assert web.served() == ours
    assert web.lab.changes() == []
    assert authority.asked() == asked, "what was there is good, and nobody was asked"
    web.renew()
    assert web.served() != ours, "it is renewed again"


# What goes wrong


def test_one_that_was_removed_is_fetched_anew_when_its_name_leads_here(web, authority):
    """And the host serves the placeholder until then."""
    web.ssh("sudo certbot delete --non-interactive --cert-name groundwork; sudo rm /etc/nginx/tls.pem")
    authority.names(shop=None)
    refused = web.lab.deploy(check=False)
    assert refused.returncode == 1 and f"{SHOP} does not resolve" in refused.stderr
    assert is_placeholder(web.served()) and names(web.served()) == {SHOP, NEWS}
    authority.names(shop=WEB)
    web.lab.deploy()
    web.trusted(SHOP, NEWS)
    assert web.lab.changes() == []


@pytest.mark.parametrize("certbot_too", [False, True])
def test_a_run_killed_while_the_authority_is_asked_is_made_good(web, certbot_too):
    web.ssh("sudo certbot delete --non-interactive --cert-name groundwork")
    process = subprocess.Popen(
        [sys.executable, "-m", "pyinfra", "-y", web.lab.inventory, "deploy.py"],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        text=True, env={**os.environ, "PYINFRA_PROGRESS": "off"},
    )  # fmt: skip
    assert any("asking https://" in line for line in process.stderr)
    web.ssh("timeout 60 sh -c 'until pgrep -x certbot; do sleep 0.05; done'")
    process.send_signal(signal.SIGKILL)
    process.wait()
    if certbot_too:
        # As it is when certbot has just begun to write.
        web.ssh(f"sudo pkill -KILL -x certbot; sudo mkdir -p {LIVE} /etc/letsencrypt/archive/groundwork; sudo truncate -s 0 {RENEWAL}")
    web.lab.deploy()
    web.trusted(SHOP, NEWS)
    assert web.ssh("sudo ls /etc/letsencrypt/renewal") == "groundwork.conf\n"


def test_one_that_is_at_its_end_is_fetched_anew(web):
    """The timer did not run for months, say: here, what is on disk ends within a day."""
    before = web.served().serial_number
    web.ssh(
        f"sudo sh -c 'cd {LIVE} && openssl req -x509 -key privkey.pem -subj / -addext subjectAltName=DNS:{SHOP},DNS:{NEWS}"
        " -days 1 -out /root/old.pem && cat /root/old.pem >fullchain.pem && cat /root/old.pem >cert.pem'"
    )
    web.lab.deploy()
    assert web.served().serial_number != before
    web.trusted(SHOP, NEWS)
    assert web.lab.changes() == []
