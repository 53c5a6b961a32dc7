"""Nginx, as its clients find it: TLS, headers, limits, what is logged and what is not public."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
import secrets as random
import ssl

import pytest
import urllib3
from cryptography import x509

from facts.certificate import LETSENCRYPT, LINEAGE
from operations.certificate import SUBJECT
from tasks.nginx import CERTIFICATE, FRONTEND, HOOK

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Python's own, for TLS 1.1
    pytest.mark.filterwarnings("ignore:Unverified HTTPS"),  # through a tunnel, no name is right
]

LOG = "/var/log/nginx/access.json"
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

# Statuses of so many requests on one connection, each for the next of the paths.
ASK = """
import http.client, json, socket, ssl, sys
address, name, times, *paths = sys.argv[1:]
context = ssl._create_unverified_context()
connection = http.client.HTTPSConnection(address)
connection.sock = context.wrap_socket(socket.create_connection((address, 443), 10), server_hostname=name)
statuses = []
for path in paths * int(times):
    connection.request("GET", path, headers={"Host": name})
    answer = connection.getresponse()
    answer.read()
    statuses.append(answer.status)
print(json.dumps(statuses))
"""


@pytest.fixture
def word():
    """A word that is nowhere else."""
    return f"groundwork-{random.token_hex(6)}"


def _needs_the_application(nginx):
    if not nginx.settings("nginx").upstreams(nginx.here):
        pytest.skip("there is no application behind it")


# TLS


@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
def test_old_tls_is_refused(site, version):
    with pytest.raises(ssl.SSLError) as refused:
        site.shake_hands(version=ssl.TLSVersion[version])
    assert refused.value.reason == "TLSV1_ALERT_PROTOCOL_VERSION", "said by nginx, and not by this machine"


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_new_tls_is_accepted(site, version):
    with site.shake_hands(version=ssl.TLSVersion[version]) as connection:
        assert connection.version() == version.replace("_", ".")


@pytest.mark.parametrize("cipher", ["AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA", "ECDHE-RSA-AES128-SHA"])
def test_ciphers_without_forward_secrecy_or_authentication_are_refused(site, cipher):
    with pytest.raises(ssl.SSLError) as refused:
        site.shake_hands(version=ssl.TLSVersion.TLSv1_2, ciphers=f"{cipher}:@SECLEVEL=0")
    assert refused.value.reason == "SSLV3_ALERT_HANDSHAKE_FAILURE"


def test_http2_is_spoken(site):
    with site.shake_hands(alpn=["h2", "http/1.1"]) as connection:
        assert connection.selected_alpn_protocol() == "h2"


def test_the_certificate_served_is_the_one_on_disk_and_lasts(nginx, site):
    with site.shake_hands() as connection:
        served = hashlib.sha256(connection.getpeercert(binary_form=True)).hexdigest()
    read = f"openssl x509 -in {CERTIFICATE}"
    assert nginx.check(f"{read} -outform DER | sha256sum").split()[0] == served
    assert nginx.run(f"{read} -noout -checkend {14 * 86400}").returncode == 0, "it ends within two weeks"


def test_the_certificate_is_for_our_names(nginx):
    settings = nginx.settings("nginx")
    if settings.provided and not settings.domains:
        pytest.skip("nginx_domains does not say for which names the certificate is")
    for name in settings.names(nginx.here):
        option = "-checkip" if re.fullmatch(r"[0-9.]+|.*:.*", name) else "-checkhost"
        assert "does match" in nginx.check(f"openssl x509 -in {CERTIFICATE} -noout {option} {name}")


def _needs_an_authority(nginx):
    if not nginx.settings("nginx").acme:
        pytest.skip('nginx_tls_certificate is not "acme"')


def test_an_authority_gave_the_certificate_served(nginx, site):
    _needs_an_authority(nginx)
    with site.shake_hands() as connection:
        served = x509.load_der_x509_certificate(connection.getpeercert(binary_form=True))
    assert SUBJECT not in served.subject.rfc4514_string(), "it is the placeholder"
    assert served.issuer != served.subject
    names = served.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {name.lower() for name in nginx.settings("nginx").domains}
    chain = f"cat {LETSENCRYPT}/live/{LINEAGE}/fullchain.pem {LETSENCRYPT}/live/{LINEAGE}/privkey.pem"
    assert nginx.run(f"{chain} | cmp - {CERTIFICATE}").returncode == 0, "nginx has another one than certbot"


def test_the_authoritys_certificate_is_renewed(nginx):
    _needs_an_authority(nginx)
    assert nginx.check("systemctl is-active certbot.timer; systemctl is-enabled certbot.timer").split() == ["active", "enabled"]
    assert float(nginx.check("systemctl show -P NextElapseUSecRealtime certbot.timer | xargs -0 date +%s -d")) > 0
    assert nginx.run("systemctl is-failed certbot.service").returncode != 0
    renewed = nginx.check("certbot certificates 2>/dev/null")
    assert f"Certificate Name: {LINEAGE}\n" in renewed and "(INVALID" not in renewed.split(f"Name: {LINEAGE}\n")[1].split("Name:")[0]
    settings = nginx.settings("nginx")
    assert f"server = {settings.acme_directory}\n" in nginx.check(f"cat {LETSENCRYPT}/renewal/{LINEAGE}.conf")
    assert nginx.run(f"test -x {HOOK}").returncode == 0


def test_what_an_authority_asks_is_answered_here_and_not_led_on(nginx, site, word):
    _needs_an_authority(nginx)
    for tls in (False, True):
        assert site.ask(f"/.well-known/acme-challenge/{word}", tls=tls).status == 404
        assert _logged(nginx, word)["upstream_status"] == ""


def test_without_an_authority_nothing_puts_its_certificate_over_ours(nginx):
    if nginx.settings("nginx").acme:
        pytest.skip('nginx_tls_certificate is "acme"')
    assert nginx.run(f"test -e {HOOK} || test -e {LETSENCRYPT}/renewal/{LINEAGE}.conf").returncode == 1


def test_no_key_of_certbots_is_open_to_others(nginx):
    keys = f"find {LETSENCRYPT} -type f \\( -name 'privkey*' -o -name private_key.json \\)"
    assert nginx.run(f"{keys} \\( -perm /077 -o ! -user root \\) 2>/dev/null").stdout == ""


def test_the_key_is_closed_to_others(nginx):
    assert nginx.check(f"stat -c '%a %U:%G' {CERTIFICATE}").strip() == "600 root:root"


# What every answer has


def test_http_leads_to_https(site):
    answer = site.ask("/some/path?a=b", tls=False)
    assert (answer.status, answer.headers["Location"]) == (308, f"https://{site.name}/some/path?a=b")


def _expected_headers(nginx) -> dict[str, str | None]:
    settings = nginx.settings("nginx")
    subdomains = "; includeSubDomains" if settings.hsts_subdomains else ""
    return {
        "Server": "nginx",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": settings.frame_options,
        "Referrer-Policy": "strict-origin-when-cross-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
        "Content-Security-Policy": settings.content_security_policy or None,
        "Strict-Transport-Security": f"max-age={settings.hsts_seconds}{subdomains}" if settings.hsts_seconds else None,
    }


def _headers(answer, nginx) -> dict[str, str | None]:
    return {name: answer.headers.get(name) for name in _expected_headers(nginx)}


def test_good_answers_and_errors_have_the_headers(nginx, site, word):
    expected = _expected_headers(nginx)
    for path in ("/", f"/{word}", f"/.{word}"):
        assert _headers(site.ask(path), nginx) == expected, path
    too_large = {"Content-Length": str(_upload_size(nginx) + 1)}
    refused = site.ask(f"/{word}", method="POST", headers=too_large)
    assert (refused.status, _headers(refused, nginx)) == (413, expected)


@pytest.mark.slow
def test_so_have_answers_without_the_application(nginx, app, site, word):
    if not app.is_lab or app.name != nginx.name:
        pytest.skip("stops the application: only on lab hosts")
    try:
        app.check("systemctl stop app.service")
        answer = site.ask(f"/{word}")
    finally:
        app.check("systemctl start app.service")
    assert (answer.status, _headers(answer, nginx)) == (502, _expected_headers(nginx))
    assert b"nginx/" not in answer.data


def test_text_is_compressed(nginx, site):
    if not nginx.settings("nginx").frontend:
        pytest.skip("nginx_frontend is not set")
    find = f"cd {FRONTEND}/current && find . -size +1k -type f"
    paths = re.findall(r"\S+\.(?:html|js|css)$", nginx.check(find), re.MULTILINE)
    if not paths:
        pytest.skip("the front end has no text of more than 1 KiB")
    for path in paths:
        answer = site.ask(path.removeprefix("."), headers={"Accept-Encoding": "gzip"})
        assert answer.headers.get("Content-Encoding") == "gzip", path
        assert "Accept-Encoding" in answer.headers["Vary"]


# What is behind it


def test_the_front_end_is_served(nginx, site):
    if not nginx.settings("nginx").frontend:
        pytest.skip("nginx_frontend is not set")
    on_disk = nginx.check(f"sha256sum {FRONTEND}/current/index.html").split()[0]
    assert hashlib.sha256(site.ask("/").data).hexdigest() == on_disk


def test_what_is_no_file_is_asked_of_the_application(nginx, site, word):
    _needs_the_application(nginx)
    answer = site.ask(f"/{word}")
    assert _logged(nginx, word)["upstream_status"] == str(answer.status)


def test_hidden_files_are_not_served(nginx, site, word):
    if not nginx.settings("nginx").frontend:
        pytest.skip("nginx_frontend is not set")
    assert site.ask(f"/.{word}").status == 404
    assert _logged(nginx, word)["upstream_status"] == "", "nginx itself says no"


def test_a_websocket_passes(nginx, site):
    if not nginx.is_lab:
        pytest.skip("the example application's echo: only on lab hosts")
    text, mask = b"groundwork", b"\0\0\0\0"  # with zeros, what is masked is what was said
    connection = site.say(
        "GET /ws/echo HTTP/1.1",
        "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: Z3JvdW5kd29yay10ZXN0IQ==",
    )  # fmt: skip
    with connection, connection.makefile("rb") as answer:
        assert answer.readline() == b"HTTP/1.1 101 Switching Protocols\r\n"
        while answer.readline().strip():
            pass
        connection.sendall(bytes([0x81, 0x80 | len(text)]) + mask + text)
        assert answer.read(2 + len(text)) == bytes([0x81, len(text)]) + text


# Limits


def _upload_size(nginx) -> int:
    size = nginx.settings("nginx").upload_size
    return int(size[:-1]) * UNITS[size[-1]]


def _announce(site, path: str, length: int) -> str:
    """What nginx says to a body of this length before one byte of it was sent."""
    with site.say(f"POST {path} HTTP/1.1", f"Content-Length: {length}", "Expect: 100-continue") as connection:
        return connection.recv(4096).split(b"\r\n")[0].decode()


def test_an_upload_may_be_as_large_as_declared(nginx, site, word):
    _needs_the_application(nginx)
    assert _announce(site, f"/{word}", _upload_size(nginx)) == "HTTP/1.1 100 Continue"


def test_a_larger_upload_is_refused(nginx, site, word):
    assert _announce(site, f"/{word}", _upload_size(nginx) + 1) == "HTTP/1.1 413 Request Entity Too Large"


@pytest.mark.slow
def test_a_large_upload_arrives(nginx, site):
    if not nginx.is_lab:
        pytest.skip("uploads to the example application: only on lab hosts")
    size = _upload_size(nginx)
    answer = site.ask("/upload", method="POST", body=b"\0" * size)
    assert (answer.status, answer.json()) == (200, {"bytes": size})


def test_metrics_are_not_public(nginx, site, outside):
    _needs_the_application(nginx)
    settings = nginx.settings("nginx")
    path = settings.metrics_path
    assert site.ask(path).status != 403, "the host itself may ask"
    if outside.address == "the controller" and settings.metrics_sources or _within(outside, settings.metrics_sources):
        pytest.skip("nginx_metrics_sources may let that machine in: name another with --outside")
    disguised = [f"/{path}", f"/.{path}", f"/x/..{path}", f"/%{ord(path[1]):x}{path[2:]}", f"{path}?a=b", f"{path}/x"]
    assert set(_ask(outside, nginx, site, 1, path, *disguised)) == {403}


def test_a_client_has_a_rate_limit(nginx, site, outside, word):
    _needs_the_application(nginx)
    if not nginx.is_lab:
        pytest.skip("sends a burst of requests: only on lab hosts")
    settings = nginx.settings("nginx")
    statuses = _ask(outside, nginx, site, settings.rate_burst + 3 * settings.rate_limit, f"/{word}")
    if _within(outside, settings.rate_exempt):
        assert set(statuses) == {404}
    else:
        assert set(statuses) == {404, 429}
        assert set(statuses[: settings.rate_burst]) == {404}, "the burst is let through"


def _ask(outside, nginx, site, times: int, *paths: str) -> list[int]:
    return json.loads(outside.run(ASK, nginx.here.private_address, site.name, str(times), *paths))


def _within(outside, networks: list[str]) -> bool:
    if outside.address == "the controller":
        return False
    return any(ipaddress.ip_address(outside.address) in ipaddress.ip_network(network) for network in networks)


def test_names_that_are_not_ours_get_no_answer(nginx, site):
    settings = nginx.settings("nginx")
    if not settings.domains:
        pytest.skip("nginx_domains is empty: any name is served")
    with pytest.raises(urllib3.exceptions.ProtocolError):
        site.ask("/", tls=False, headers={"Host": "not-ours.example"})
    with pytest.raises(urllib3.exceptions.ProtocolError):
        site.ask("/", headers={"Host": "not-ours.example"})
    if settings.has("reject", nginx.here):
        with pytest.raises(ssl.SSLError) as refused:
            site.shake_hands("not-ours.example")
        assert refused.value.reason == "TLSV1_UNRECOGNIZED_NAME"


# What is logged


def _logged(nginx, word: str) -> dict:
    """The log's line for a request."""
    return json.loads(nginx.check(f"tail -n 500 {LOG} | grep {word} | tail -n 1"))


def test_a_request_is_a_line_of_json(nginx, site, word):
    """Whatever is asked with."""
    odd = 'a "quoted" \\ and {braced}'
    answer = site.ask(f"/{word}?x=%22", headers={"User-Agent": odd, "X-Forwarded-For": "203.0.113.9"})
    logged = _logged(nginx, word)
    assert logged["path"] == f"/{word}" and logged["query"] == "x=%22" and logged["agent"] == odd
    assert logged["method"] == "GET" and logged["scheme"] == "https" and logged["host"] == site.name
    assert logged["status"] == answer.status and logged["seconds"] >= 0
    if not nginx.settings("nginx").trusted_proxies:
        assert logged["client"] == "127.0.0.1", "a client's word for its address is not believed"


def test_each_line_of_the_log_can_be_read(nginx):
    for line in nginx.check(f"tail -n 500 {LOG}").splitlines():
        assert {"time", "client", "status", "seconds", "request_id"} <= set(json.loads(line))


def test_logs_are_closed_to_others(nginx):
    assert nginx.check(f"stat -c '%a %U:%G' {LOG}").strip() == "640 www-data:adm"
    assert nginx.check("find /var/log/nginx/ -type f -perm /o+rwx") == ""


# What runs


def test_the_configuration_has_neither_errors_nor_warnings(nginx):
    assert nginx.check("nginx -q -t 2>&1") == ""


def test_it_listens_for_both_kinds_of_addresses(nginx):
    listening = nginx.check("ss -Hltnp | grep '\"nginx\"'").splitlines()
    everywhere = ["0.0.0.0", "[::]"] if nginx.settings("nginx").ipv6 else ["0.0.0.0"]
    wanted = {f"{address}:{port}" for address in everywhere for port in (80, 443)}
    assert {line.split()[3] for line in listening} == wanted


def test_workers_run_what_is_on_disk(nginx):
    changed = int(nginx.check(f"stat -c %Z /etc/nginx/nginx.conf {CERTIFICATE} | sort -n | tail -n 1"))
    now, *lines = nginx.check("date +%s; ps -o user=,etimes=,args= --ppid $(cat /run/nginx.pid)").splitlines()
    # One that was told to leave still serves the requests that it has.
    workers = [line.split() for line in lines if line.endswith("nginx: worker process")]
    assert len(workers) == nginx.here.cores
    assert {user for user, *_ in workers} == {"www-data"}
    assert all(int(now) - int(age) + 1 >= changed for _, age, *_ in workers), "older than the configuration"


def test_what_runs_is_what_is_installed(nginx):
    running = nginx.check("/proc/$(cat /run/nginx.pid)/exe -v 2>&1").strip()
    upstream = nginx.check("dpkg-query -W -f '${source:Upstream-Version}' nginx")
    assert running.split("/")[1].split()[0] == upstream
