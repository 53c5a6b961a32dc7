"""Nginx: its configuration, read back as directives, and what is refused."""

from __future__ import annotations

import base64
import getpass
import grp
import os
import re
import subprocess

import pytest

from groundwork.preflight import render_errors
from groundwork.rows import File
from groundwork.secrets import Secret
from groundwork.templates import render
from groundwork.topology import SettingsError
from operations.files import _write_command
from tasks import nginx
from tasks.nginx import Settings
from tests.unit.conftest import SYSTEMS, machine, make_topology

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
        ({"nginx_sources": ["offise"]}, "nginx_sources: 'offise'"),
        ({"nginx_tls_certificate": "/nowhere.pem"}, "nginx_tls_certificate = '/nowhere.pem'"),
        ({"nginx_tls_certificate": "README.md"}, "nginx_tls_certificate"),
        ({"nginx_frontend": "/nowhere"}, "nginx_frontend = '/nowhere'"),
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
