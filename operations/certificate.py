"""Certificates whose key is made on the host, and never leaves it: a placeholder, or an authority's, by ACME."""

from __future__ import annotations

import secrets
import shlex
from typing import Iterable

from pyinfra import host, state
from pyinfra.api import StringCommand, operation

from facts.certificate import LETSENCRYPT, LINEAGE, OFF, Certificate, CertificateState, Lineage, LineageState
from groundwork.context import current
from groundwork.late import http_client, urllib_request
from groundwork.settings import is_address
from operations.report import report, stop

SUBJECT = "Groundwork placeholder"
"""Organisation in the subject, by which a placeholder of ours is known."""
DAYS = 397
RENEW_DAYS = 30
LEFT_SECONDS = 86400
"""certbot's timer renews long before (30 days of 90); a certificate that ends within a day was forgotten."""
LOCK_WAIT = 300
"""Seconds to wait for another certbot: it needs some for each domain."""

_KEPT = "No authority was asked, and the certificate that nginx serves was not touched"
_RENEWAL = f"renewal/{LINEAGE}.conf"


@operation()
def self_signed(path: str, names: list[str], keep: bool = False):
    """Make a PEM file hold a key and a self-signed certificate for these names.

    It is made anew when a name is missing, when it ends within 30 days, or when what is there is no
    placeholder (a provided certificate whose setting was removed).

    Args:
        path: of the file; its directory exists. Owner root, mode 600.
        names: host names and addresses.
        keep: leave what is there, whatever it is: it serves until a better one comes.
    """
    now = host.get_fact(Certificate, path=path, seconds=RENEW_DAYS * 86400)
    if keep and now is not None:
        return
    if reason := _reason(now, names):
        report(f"{path}: self-signed for {', '.join(names)} ({reason})")
        yield _make(path, names)


def _reason(now: CertificateState | None, names: list[str]) -> str:
    if now is None:
        return "there was none"
    if SUBJECT not in now.subject:
        return "what was there is no placeholder, and no certificate is provided any more"
    if now.names != {name.lower() for name in names}:
        return "other names"
    if not now.lasts:
        return f"it would end within {RENEW_DAYS} days"
    return "" if now.mode == "600" else "its mode was not 600"


def _make(path: str, names: list[str]) -> str:
    alternatives = ",".join(f"{'IP' if is_address(name) else 'DNS'}:{name}" for name in names)
    directory = shlex.quote(path.rsplit("/", 1)[0])
    return (
        f"set -e; umask 077; rm -rf {directory}/.tls.??????; t=$(mktemp -d {directory}/.tls.XXXXXX); trap 'rm -rf \"$t\"' EXIT; "
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 "
        f"-days {DAYS} -subj {shlex.quote(f'/O={SUBJECT}')} "
        f"-addext {shlex.quote(f'subjectAltName={alternatives}')} "
        '-keyout "$t/key" -out "$t/certificate" 2>"$t/said" || { cat "$t/said" >&2; exit 1; }; '
        f'cat "$t/certificate" "$t/key" >"$t/both"; sync "$t/both"; mv -fT "$t/both" {shlex.quote(path)}'
    )


@operation()
def from_authority(
    path: str, domains: list[str], email: str, directory: str, authority: str | None, webroot: str, install: str
):
    """Make a PEM file hold a certificate that an authority gave by ACME, and certbot renew it.

    The authority is asked only when it must be: for the first certificate, for other names, for another
    authority, or when certbot's timer has let the certificate come to its end. Authorities count failures
    and shut out who has too many: each domain is seen to lead to this host first.

    Args:
        path: of the file.
        domains: names that the certificate is for.
        email: of the account.
        directory: URL of the authority's directory.
        authority: PEM file on the host, of what vouches for the directory; None for the system's.
        webroot: directory that the domains serve on port 80, below /.well-known/acme-challenge/.
        install: script on the host that brings the certificate to the file, and the file to its daemon.
    """
    now = host.get_fact(Lineage, path=path, seconds=LEFT_SECONDS)
    if state.is_executing and _reason_to_ask(now, domains, directory):
        # Perhaps of a run that was killed, while its certbot went on.
        host.run_shell_command(StringCommand(_WAIT), _sudo=True)
        now = host.get_fact(Lineage, path=path, seconds=LEFT_SECONDS)
    commands = []
    if reason := _reason_to_ask(now, domains, directory):
        wanted = f"certificate for {', '.join(domains)}:"
        if not state.is_executing:
            report(f"{wanted} {directory} will be asked, if each domain leads here ({reason})")
        else:
            report(f"{wanted} looking whether each domain leads here ({reason})")
            if astray := _astray(domains, webroot):
                yield stop(*astray, f"{_KEPT}. Put the DNS right, or take the name out of nginx_domains")
                return
            report(f"{wanted} asking {directory} ({reason})")
        commands.append(_ask(now, domains, email, directory, authority, webroot))
    elif now.off:
        report(f"{LETSENCRYPT}/{_RENEWAL}: certbot renews it again")
        commands.append(f"cd {LETSENCRYPT} && mv -fT {_RENEWAL}{OFF} {_RENEWAL}")
    if commands or not now.installed:
        report(f"{path}: the certificate in {LETSENCRYPT}/live/{LINEAGE}")
        commands.append(shlex.quote(install))
    yield from commands


def _reason_to_ask(now: LineageState, domains: list[str], directory: str) -> str:
    if not now.left:
        return "there was none"
    if not now.whole:
        return "what an earlier certbot left is not whole"
    if now.server != directory:
        return f"the one there is from {now.server}"
    if now.names != {name.lower() for name in domains}:
        return f"the one there is for {', '.join(sorted(now.names))}"
    return "" if now.lasts else "it has ended, or does so within a day"


# certbot locks by fcntl, which flock(1) does not see; it brings Python.
_WAIT = (
    f"cd {LETSENCRYPT} && [ ! -e .certbot.lock ] || timeout {LOCK_WAIT} python3 -c "
    "'import fcntl; fcntl.lockf(open(\".certbot.lock\", \"a\"), fcntl.LOCK_EX)'"
)

# certbot would give a certificate another name (groundwork-0001) beside the remains of one.
_ASIDE = (
    f"d=groundwork-left-$(date +%s); mkdir -m 700 $d; for p in live archive {_RENEWAL} {_RENEWAL}{OFF}; do "
    f'case $p in live|archive) p=$p/{LINEAGE};; esac; [ ! -e $p ] || mv -T $p "$d/$(echo $p | tr / -)"; done; '
)


def _ask(
    now: LineageState, domains: list[str], email: str, directory: str, authority: str | None, webroot: str
) -> str:
    arguments = [
        "certonly", "--non-interactive", "--agree-tos", "--no-eff-email", "--email", email,
        "--server", directory, "--cert-name", LINEAGE, "--key-type", "ecdsa",
        "--webroot", "--webroot-path", webroot, "--renew-with-new-domains",
        # Of another authority, certbot would keep one that has not ended.
        "--force-renewal" if now.whole and now.server != directory else "--keep-until-expiring",
        *(word for domain in domains for word in ("--domain", domain)),
    ]  # fmt: skip
    trust = f"REQUESTS_CA_BUNDLE={shlex.quote(authority)} " if authority else ""
    back = f"[ -s {_RENEWAL} ] || [ ! -s {_RENEWAL}{OFF} ] || mv -fT {_RENEWAL}{OFF} {_RENEWAL}; "
    failed = f"{directory} gave no certificate for {', '.join(domains)}. What nginx serves was not touched"
    return (
        f"set -e; cd {LETSENCRYPT}; {_ASIDE if now.left and not now.whole else back}"
        f'said=$({trust}certbot {" ".join(map(shlex.quote, arguments))} 2>&1) || '
        f"{{ printf '%s\\n' \"$said\" {shlex.quote(failed)} >&2; exit 1; }}"
    )


# Where the domains lead


def _astray(domains: list[str], webroot: str) -> list[str]:
    """Domains that do not lead to this host, each with where it leads; it acts, and is no change.

    A token is put where the authority will look, and fetched by name: by the host, and, where the host can't
    tell (a network that does not lead its own public address back in), by the controller.
    """
    token = secrets.token_hex(16)
    directory = shlex.quote(f"{webroot}/.well-known/acme-challenge")
    script = _KNOCK.format(directory=directory, token=token, domains=" ".join(map(shlex.quote, domains)))
    good, output = host.run_shell_command(StringCommand(script), _sudo=True)
    found = [line.split("|", 3) for line in output.stdout_lines if line.count("|") == 3]
    sentences = []
    for domain in domains:
        answers = [tuple(rest) for name, *rest in found if name == domain]
        if not _leads_here(answers) and (_is_wrong(answers) or not _seen_by_controller(domain, token)):
            sentences.append(_sentence(domain, answers))
    host.run_shell_command(StringCommand(f"rm -f {directory}/{token}"), _sudo=True)
    return sentences if good else ["the domains could not be looked at", *output.stderr_lines[-3:]]


# An address of the host's own loopback (a line in /etc/hosts) says nothing of where others are led.
# A wrong answer is asked for again: workers of before a reload may still be there.
_KNOCK = """umask 022; mkdir -p {directory} && printf %s {token} >{directory}/{token} || exit 1
for d in {domains}; do
for a in $(getent ahosts "$d" | awk '{{print $1}}' | sort -u); do
case $a in 127.*|::1) echo "$d|$a|loopback|"; continue;; *:*) to="[$a]";; *) to=$a;; esac
for n in 1 2 3 4 5; do answer=$(curl -sLk --noproxy '*' -m 10 --resolve "$d:80:$to" -w '|%{{http_code}}' "http://$d/.well-known/acme-challenge/{token}" 2>/dev/null | tail -n 1)
case $answer in "{token}|200"|*"|000") break;; esac; sleep 0.3; done
case $answer in "{token}|200") echo "$d|$a|here|";; *"|000") echo "$d|$a|silent|";; *) echo "$d|$a|other|${{answer##*|}}";; esac
done; done"""


def _leads_here(answers: list[tuple[str, str, str]]) -> bool:
    """By every address that answers: the authority takes any of them."""
    return any(verdict == "here" for _, verdict, _ in answers) and not _is_wrong(answers)


def _is_wrong(answers: list[tuple[str, str, str]]) -> bool:
    return any(verdict == "other" for _, verdict, _ in answers)


def _seen_by_controller(domain: str, token: str) -> bool:
    url = f"http://{domain}/.well-known/acme-challenge/{token}"
    try:
        with urllib_request.urlopen(url, timeout=10) as answer:
            return answer.read(100).decode() == token
    except (OSError, ValueError, http_client.HTTPException):
        return False


def _sentence(domain: str, answers: Iterable[tuple[str, str, str]]) -> str:
    words = {
        "here": "this host",
        "loopback": "loopback, by this host's /etc/hosts",
        "silent": "nobody answers there on port 80",
        "other": "another answers there",
    }
    seen = [f"{address} ({words[verdict]}{f', with {code}' if code else ''})" for address, verdict, code in answers]
    here = current()
    wanted = f"it must lead to {here.name}, port 80, here or by an address that is passed on to {here.private_address}"
    return f"nginx_domains: {domain} leads to {', '.join(seen)}: {wanted}" if seen else (
        f"nginx_domains: {domain} does not resolve: {wanted}"
    )
