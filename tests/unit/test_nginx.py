"""Nginx: its configuration, read back as directives, and what is refused."""

from __future__ import annotations

import base64
import getpass
import grp
import os
import re
import socket
import subprocess
import threading

from types import SimpleNamespace

import pytest

from facts import certificate as facts
from facts.certificate import LineageState
from groundwork.preflight import render_errors
from groundwork.rows import Absent, File
from groundwork.secrets import Secret
from groundwork.templates import render
from groundwork.topology import SettingsError
from operations import certificate
from operations.files import _write_command
from tasks import nginx
from tasks.nginx import Settings
from tests.unit.conftest import SYSTEMS, machine, make_topology
from tests.unit.pyinfra_fake import inventory, run

_TOKEN = re.compile(r"""\s*(?:#[^\n]*|("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[{};]|(?:[^\s;{}"'\\]|\\.)+(?:\([^)]*\)\S*(?<!;))?))""")


def parsed(text: str) -> list:
    """Directives as lists of words; a block's last item is the list of its directives."""
    tokens = iter([token for token in _TOKEN.findall(text) if token])

    def block(nested: bool) -> list:
        found, words = [], []
        for token in tokens:
            if token == ";":
                found.append(words)
                words = []
            elif token == "{":
                found.append([*words, block(True)])
                words = []
            elif token == "}":
                assert nested and not words, f"unexpected }} after {words}"
                return found
            else:
                words.append(token.strip("\"'"))
        assert not nested and not words, "a block or directive is not closed"
        return found

    return block(False)


def configuration(here) -> list:
    settings = here.settings(Settings)
    row = next(row for row in settings.files(here) if row.path.endswith("nginx.conf"))
    http = next(item for item in parsed(render(row, settings, here, str).decode()) if item[0] == "http")
    return http[-1]


def servers(here, port: str) -> list[list]:
    blocks = [item[-1] for item in configuration(here) if item[0] == "server"]
    return [block for block in blocks if any(item[0] == "listen" and item[1] == port for item in block)]


def values(block: list, name: str) -> list[list[str]]:
    return [item[1:] for item in block if item[0] == name]


def locations(server: list) -> dict[str, list]:
    return {" ".join(item[1:-1]): item[-1] for item in server if item[0] == "location"}


def host(codename: str = "bookworm", groups=("app", "nginx"), **data):
    here = make_topology({"one": (list(groups), {"app_source": "examples/app", **data})}).hosts["one"]
    here.machine = machine(codename)
    return here


ACME = {
    "nginx_tls_certificate": "acme",
    "nginx_domains": ["shop.example.org"],
    "nginx_acme_email": "webmaster@example.org",
    "nginx_acme_terms_agreed": True,
}


def test_http_leads_to_https():
    (server,) = servers(host(), "80")
    assert values(server, "return") == [["308", "https://$host$request_uri"]]


@pytest.mark.parametrize(("codename", "directive"), [("jammy", False), ("noble", False), ("bookworm", False), ("trixie", True)])
def test_http2_as_each_version_spells_it(codename, directive):
    (server,) = servers(host(codename), "443")
    assert (["on"] in values(server, "http2")) is directive
    assert all(("http2" in listen) is not directive for listen in values(server, "listen"))


def test_names_that_are_not_ours_are_refused():
    here = host(nginx_domains=["app.example.org", "www.example.org"])
    for port in ("80", "443"):
        default, ours = servers(here, port)
        assert all("default_server" in listen for listen in values(default, "listen"))
        assert values(default, "return") == [["444"]]
        assert values(ours, "server_name") == [["app.example.org", "www.example.org"]]
        assert not any("default_server" in listen for listen in values(ours, "listen"))
    assert values(servers(here, "443")[0], "ssl_reject_handshake") == [["on"]]
    jammy = servers(host("jammy", nginx_domains=["app.example.org"]), "443")[0]
    assert values(jammy, "ssl_reject_handshake") == []  # came with 1.19.4


def test_no_location_loses_the_headers():
    (server,) = servers(host(nginx_frontend="examples/frontend"), "443")
    sent = {name for name, *_ in values(server, "add_header")}
    assert {"Strict-Transport-Security", "X-Content-Type-Options", "X-Frame-Options"} <= sent
    assert all(words[-1] == "always" for words in values(server, "add_header"))
    assert not any(values(block, "add_header") for block in locations(server).values())


def test_headers_can_be_left_out():
    (server,) = servers(host(nginx_hsts_seconds=0, nginx_content_security_policy=None), "443")
    sent = {name for name, *_ in values(server, "add_header")}
    assert not {"Strict-Transport-Security", "Content-Security-Policy"} & sent


def test_metrics_are_not_public():
    (server,) = servers(host(nginx_metrics_sources=["10.0.9.0/24"]), "443")
    (metrics,) = [block for name, block in locations(server).items() if "metrics" in name]
    assert values(metrics, "allow") == [["127.0.0.1"], ["::1"], ["10.0.9.0/24"]]
    assert values(metrics, "deny") == [["all"]]


def test_the_clients_word_on_itself_is_replaced():
    headers = dict(values(configuration(host()), "proxy_set_header"))
    assert headers["X-Forwarded-For"] == headers["X-Real-IP"] == "$remote_addr"


def test_proxies_in_front_are_believed_only_when_named():
    assert not values(configuration(host()), "real_ip_header")
    found = configuration(host(nginx_trusted_proxies=["10.1.0.0/16"]))
    assert values(found, "set_real_ip_from") == [["10.1.0.0/16"]]


def test_the_application_here_and_elsewhere():
    hosts = {
        "one": (["app", "nginx"], {"app_source": "examples/app"}),
        "two": (["app"], {"app_source": "examples/app", "app_port": 8090}),
    }
    here = make_topology(hosts).hosts["one"]
    (upstream,) = [item[-1] for item in configuration(here) if item[0] == "upstream"]
    assert values(upstream, "server") == [["unix:/run/app/app.sock"], ["10.0.0.2:8090"]]


def test_a_front_end_alone():
    here = host(groups=["nginx"], nginx_frontend="examples/frontend")
    (server,) = servers(here, "443")
    assert values(locations(server)["/"], "try_files") == [["$uri", "$uri/index.html", "=404"]]
    assert not values(configuration(here), "proxy_set_header")


def test_limits():
    found = configuration(host(nginx_rate_limit=7, nginx_rate_exempt=["10.0.0.0/8"], nginx_upload_size="1G"))
    assert values(found, "limit_req_zone") == [["$rate_key", "zone=clients:10m", "rate=7r/s"]]
    assert values(found, "client_max_body_size") == [["1G"]]
    (exempt,) = [item[-1] for item in found if item[0] == "geo"]
    assert ["10.0.0.0/8", "1"] in exempt


@pytest.mark.parametrize("codename", [codename for _, codename in SYSTEMS])
def test_everything_renders(codename):
    here = host(codename, nginx_domains=["example.org"], nginx_frontend="examples/frontend", nginx_ipv6=False)
    assert list(render_errors(here, here.settings(Settings))) == []
    assert not any("[::]" in listen[0] for block in servers(here, "443") for listen in values(block, "listen"))


def test_a_key_is_needed_only_with_a_certificate():
    assert host().settings(Settings).secrets(host()) == []
    with_one = host(nginx_tls_certificate="/tmp/x.pem")
    assert with_one.settings(Settings).secrets(with_one) == [Secret("nginx/tls_key")]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"groups": ["nginx"]}, "nothing to serve"),
        ({"nginx_tls_certificate": "/nowhere.pem"}, "nginx_tls_certificate = '/nowhere.pem'"),
        ({"nginx_tls_certificate": "README.md"}, "nginx_tls_certificate"),
        ({"nginx_frontend": "/nowhere"}, "nginx_frontend = '/nowhere'"),
        ({**ACME, "nginx_domains": []}, "nginx_domains is empty"),
        ({**ACME, "nginx_acme_email": None}, "nginx_acme_email is not set"),
        ({**ACME, "nginx_acme_terms_agreed": False}, "nginx_acme_terms_agreed is not True"),
        ({**ACME, "nginx_domains": ["192.0.2.7"]}, "nginx_domains: 192.0.2.7 is an address"),
        ({**ACME, "nginx_domains": ["shop"]}, "nginx_domains: shop has no dot"),
        ({**ACME, "nginx_sources": ["10.0.0.0/8"]}, "nginx_sources = ['10.0.0.0/8']"),
        ({**ACME, "nginx_acme_authority": "/nowhere.pem"}, "nginx_acme_authority = '/nowhere.pem'"),
        ({**ACME, "nginx_acme_authority": "README.md"}, "nginx_acme_authority = 'README.md': is not a certificate"),
    ],
)
def test_what_is_refused_with_a_sentence(data, said):
    here = host(**data)
    assert said in "\n".join(here.settings(Settings).errors(here))


@pytest.mark.parametrize(
    "data",
    [
        {"nginx_domains": ["ex ample.org"]},
        {"nginx_upload_size": "100MB"},
        {"nginx_rate_exempt": ["10.0.0.1/8"]},
        {"nginx_content_security_policy": 'default-src "x"'},
        {"nginx_metrics_path": "/metrics { }"},
        {"nginx_domains": ["*.example.org"]},
        {"nginx_acme_email": "nobody"},
        {"nginx_acme_directory": "http://acme.example.org/directory"},
    ],
)
def test_values_that_are_refused(data):
    with pytest.raises(SettingsError, match=next(iter(data))):
        host(**data).settings(Settings)


def test_a_key_of_another_certificate_does_not_land(tmp_path):
    """The check is run for real, on pairs that openssl makes."""
    made = {}
    for name in ("one", "two"):
        key, certificate = tmp_path / f"{name}.key", tmp_path / f"{name}.pem"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x"]
        subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
        made[name] = certificate.read_bytes(), key.read_bytes()
    row = File(
        str(tmp_path / "tls.pem"), owner=getpass.getuser(), group=grp.getgrgid(os.getgid()).gr_name, check=nginx._PAIR
    )
    good = base64.b64encode(made["one"][0] + made["one"][1])
    bad = base64.b64encode(made["one"][0] + made["two"][1])
    landed = subprocess.run(["sh", "-c", _write_command(row, None)], input=good, capture_output=True)
    assert landed.returncode == 0, landed.stderr
    refused = subprocess.run(["sh", "-c", _write_command(row, None)], input=bad, capture_output=True, text=False)
    assert refused.returncode == 1 and b"is not the key of nginx_tls_certificate" in refused.stderr


# ACME


def test_with_acme_nothing_is_wrong_and_no_key_is_wanted():
    here = host(**ACME)
    assert list(here.settings(Settings).errors(here)) == []
    assert here.settings(Settings).secrets(here) == []


def test_an_authority_of_ones_own_may_be_inside(tmp_path):
    bundle = tmp_path / "authority.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-keyout", "/dev/null"]
    subprocess.run([*command, "-out", bundle], check=True, capture_output=True)
    own = {"nginx_acme_authority": str(bundle), "nginx_sources": ["10.0.0.0/8"], "nginx_domains": ["shop"]}
    here = host(**{**ACME, **own})
    assert list(here.settings(Settings).errors(here)) == []
    rows = {row.path: row for row in here.settings(Settings).files(here)}
    assert rows[nginx.AUTHORITY].content == bundle.read_text()
    assert f"Environment=REQUESTS_CA_BUNDLE={nginx.AUTHORITY}" in rows[nginx.RENEWAL].content


def test_one_name_on_several_hosts_is_refused_in_words():
    topology = make_topology({"one": (["nginx"], ACME), "two": (["nginx"], {"nginx_domains": ["Shop.example.org"]})})
    here = topology.hosts["one"]
    assert "nginx_domains: shop.example.org is also served by two" in "\n".join(here.settings(Settings).errors(here))


def test_what_an_authority_asks_is_answered_and_not_led_on():
    here = host(**ACME, nginx_frontend="examples/frontend")
    for port in ("80", "443"):
        _, ours = servers(here, port)
        challenge = locations(ours)["^~ /.well-known/acme-challenge/"]
        assert values(challenge, "root") == [[nginx.CHALLENGES]]
        assert values(challenge, "try_files") == [["$uri", "=404"]]
    _, ours = servers(here, "80")
    assert values(ours, "return") == [], "it would come before any location"
    assert values(locations(ours)["/"], "return") == [["308", "https://$host$request_uri"]]


def test_whoever_leaves_acme_keeps_its_files_and_no_renewal():
    row = {row.path: row for row in host().settings(Settings).files(host())}
    assert isinstance(row[nginx.HOOK], Absent)
    assert row["/etc/letsencrypt/renewal/groundwork.conf"] == Absent(
        "/etc/letsencrypt/renewal/groundwork.conf", aside=".off"
    )


GOOD = {
    "left": True,
    "server": "https://ca.example/dir",
    "names": {"shop.example.org"},
    "pair": True,
    "lasts": True,
    "installed": True,
}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        ({"off": True}, ""),
        ({"installed": False}, ""),
        ({"left": False, "server": "", "names": set(), "pair": False}, "there was none"),
        ({"server": ""}, "not whole"),
        ({"pair": False}, "not whole"),
        ({"server": "https://staging.example/dir"}, "from https://staging.example/dir"),
        ({"names": {"www.example.org"}}, "for www.example.org"),
        ({"lasts": False}, "ended"),
    ],
)
def test_the_authority_is_asked_only_for_a_reason(changed, said):
    now = LineageState(**{**GOOD, **changed})
    reason = certificate._reason_to_ask(now, ["Shop.example.org"], "https://ca.example/dir")
    assert (said in reason) if said else reason == ""


def test_certbot_is_asked_by_options_that_every_version_has():
    arguments = (["shop.example.org", "www.example.org"], "a@b.c", "https://ca.example/dir", None, "/srv/acme")
    asked = certificate._ask(LineageState(), *arguments)
    assert "--domain shop.example.org --domain www.example.org" in asked
    assert "--key-type ecdsa" in asked and "--cert-name groundwork" in asked
    assert "--force-renewal" not in asked and "mv -T" not in asked
    assert "--force-renewal" in certificate._ask(LineageState(**{**GOOD, "server": "https://other"}), *arguments)
    assert "groundwork-left" in certificate._ask(LineageState(**{**GOOD, "pair": False}), *arguments)


@pytest.mark.parametrize(
    ("answers", "leads", "wrong"),
    [
        ([], False, False),
        ([("192.0.2.1", "here", "")], True, False),
        ([("192.0.2.1", "here", ""), ("2001:db8::1", "silent", "")], True, False),
        ([("192.0.2.1", "here", ""), ("192.0.2.2", "other", "404")], False, True),
        ([("127.0.1.1", "loopback", "")], False, False),
    ],
)
def test_where_a_domain_leads(answers, leads, wrong):
    assert (certificate._leads_here(answers), certificate._is_wrong(answers)) == (leads, wrong)


def test_a_port_80_that_does_not_speak_http_is_not_this_host():
    """An exception would end the run for every host."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            connection.recv(1000)
            connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        assert certificate._seen_by_controller(f"127.0.0.1:{server.getsockname()[1]}", "token") is False


def test_the_fact_reads_what_certbot_keeps(tmp_path, monkeypatch):
    """Run for real, on what openssl makes; an authority's certificate may have no subject."""
    monkeypatch.setattr(facts, "LETSENCRYPT", str(tmp_path))
    live, served = tmp_path / "live" / "groundwork", tmp_path / "tls.pem"

    def ask() -> LineageState:
        fact = facts.Lineage()
        done = subprocess.run(["sh", "-c", fact.command(str(served), 86400)], capture_output=True, text=True, check=True)
        return fact.process(done.stdout.splitlines())

    assert ask() == LineageState()
    live.mkdir(parents=True)
    (tmp_path / "renewal").mkdir()
    renewal = tmp_path / "renewal" / "groundwork.conf"
    renewal.touch()
    assert ask() == LineageState(left=True) and not ask().whole
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/", "-days", "2", "-addext"]
    command += ["subjectAltName=DNS:Shop.example.org", "-keyout", live / "privkey.pem", "-out", live / "fullchain.pem"]
    subprocess.run(command, check=True, capture_output=True)
    renewal.write_text("# by certbot\n[renewalparams]\nserver = https://ca.example/dir\n")
    served.write_bytes((live / "fullchain.pem").read_bytes() + (live / "privkey.pem").read_bytes())
    assert ask() == LineageState(**{**GOOD, "installed": False}), "it can be read by others"
    served.chmod(0o600)
    assert ask() == LineageState(**GOOD)
    renewal.rename(f"{renewal}.off")
    assert ask() == LineageState(**GOOD, off=True)
    fact = facts.Certificate()
    for seconds, lasts in ((86400, True), (3 * 86400, False)):
        shown = subprocess.run(["sh", "-c", fact.command(str(served), seconds)], capture_output=True, text=True).stdout
        assert "PRIVATE" not in shown
        assert fact.process(shown.splitlines()) == facts.CertificateState("", {"shop.example.org"}, lasts, "600")
    (live / "privkey.pem").unlink()
    assert not ask().whole and not ask().installed


@pytest.mark.parametrize("codename", ["jammy", "trixie"])
def test_asked_first_it_names_the_authority(tmp_path, codename):
    path = inventory(tmp_path, ["nginx"], codename, **ACME, nginx_frontend="examples/frontend")
    done = run(path, "deploy.py", "--dry")
    assert done.returncode == 0, done.stderr
    asked = "https://acme-v02.api.letsencrypt.org/directory will be asked, if each domain leads here (there was none)"
    assert f"certificate for shop.example.org: {asked}" in done.stderr and "asking" not in done.stderr
    assert f"{nginx.HOOK}: new" in done.stderr and "self-signed for shop.example.org" in done.stderr


def test_no_authority_is_said_to_be_asked_before_the_domains_were_looked_at(monkeypatch):
    said, astray = [], ["nginx_domains: shop.example.org leads to 192.0.2.1"]
    monkeypatch.setattr(certificate, "report", said.append)
    monkeypatch.setattr(certificate, "state", SimpleNamespace(is_executing=True))
    answers = SimpleNamespace(get_fact=lambda fact, **given: LineageState(), run_shell_command=lambda *given, **more: (True, None))
    monkeypatch.setattr(certificate, "host", answers)
    monkeypatch.setattr(certificate, "_astray", lambda domains, webroot: list(astray))
    given = dict(
        path="/p", domains=["shop.example.org"], email="a@example.org", directory="https://ca.example/dir", authority=None, webroot="/w", install="/i"
    )
    assert len(list(certificate.from_authority._inner(**given))) == 1 and not any("asking" in line for line in said)
    astray.clear()
    assert len(list(certificate.from_authority._inner(**given))) == 2
    assert [line for line in said if "asking https://ca.example/dir (there was none)" in line] != []


def test_what_is_refused_is_refused_before_a_host_is_touched(tmp_path):
    path = inventory(tmp_path, ["nginx"], **{**ACME, "nginx_acme_terms_agreed": False}, nginx_frontend="examples/frontend")
    done = run(path, "-y", "deploy.py")
    assert done.returncode == 1
    assert "nginx_acme_terms_agreed is not True" in done.stderr and "nothing was changed" in done.stderr
    assert "Starting operation" not in done.stderr and "Traceback" not in done.stderr
