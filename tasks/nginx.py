"""Nginx: TLS, and the way in to the application and its front end."""

from __future__ import annotations

from pathlib import Path
from typing import Iterable, Literal

from cryptography import x509
from pydantic import Field

from groundwork.roles import role
from groundwork.rows import Directory, File, Row
from groundwork.secrets import Secret
from groundwork.settings import Domain, Network, RoleSettings, Size
from groundwork.sources import SourceError, shown, tree
from groundwork.templates import ROOT
from groundwork.topology import Flow, Here
from operations import accounts, apt, files, service, wait
from operations.certificate import self_signed
from operations.release import release

FRONTEND = "/srv/frontend"
CERTIFICATE = "/etc/nginx/tls.pem"
"""Certificate, chain and key in one file, so that the three are always of one kind."""
BEFORE_1_25 = ("jammy", "noble", "bookworm")
"""Series whose nginx (1.18, 1.24, 1.22) has no directive `http2`, which came with 1.25.1."""
BEFORE_1_19 = ("jammy",)
"""Series whose nginx has no `ssl_reject_handshake`, which came with 1.19.4."""

# Of the candidate, before it lands: that the key is the certificate's.
_PAIR = (
    '[ "$(openssl x509 -in {} -noout -pubkey)" = "$(openssl pkey -in {} -pubout)" ] '
    "|| { echo 'the key (nginx_tls_key) is not the key of nginx_tls_certificate' >&2; false; }"
)

# nginx -t makes the log files that it does not find, and would make them root's alone.
_TEST = (
    "(cd /var/log/nginx && [ -e access.json ] || install -o www-data -g adm -m 640 /dev/null access.json) "
    "&& nginx -q -t -c {}"
)

# nginx -t is silent about a port that it would not get.
PORTS = {80: "HTTP", 443: "HTTPS"}
_PORTS_FREE = files.ports_free("nginx.service", PORTS)


class Settings(RoleSettings):
    """Nginx."""

    role = "nginx"

    domains: list[Domain] = []
    """Host names that are served; others are refused. Empty serves whatever name is asked for."""
    tls_certificate: str | None = None
    """Certificate with its chain, PEM: a file on the controller, absolute or relative to the repository.
    By default a self-signed placeholder is made on the host."""
    tls_key: Secret = Secret("nginx/tls_key")
    """Key of nginx_tls_certificate, PEM; needed only with it."""
    hsts_seconds: int = Field(default=31536000, ge=0)
    """How long browsers keep to HTTPS (Strict-Transport-Security); 0 sends no such header."""
    hsts_subdomains: bool = False
    """Let that hold for all names below the domains, too."""
    content_security_policy: str | None = Field(
        default="frame-ancestors 'self'; base-uri 'self'; object-src 'none'", pattern=r'^[^"\\$\n]*$'
    )
    """Content-Security-Policy of every answer; None sends none. The default breaks no page that loads
    scripts from elsewhere; a strict one is the application's to know."""
    frame_options: Literal["DENY", "SAMEORIGIN"] = "SAMEORIGIN"
    """X-Frame-Options."""
    sources: list[str] = ["internet"]
    """Who may reach ports 80 and 443: "internet", networks, roles, or names of externals."""
    trusted_proxies: list[Network] = []
    """Load balancers in front, whose X-Forwarded-For tells the client's address."""
    upload_size: Size = "100M"
    """The largest body of a request; larger ones are refused with 413."""
    rate_limit: int = Field(default=20, ge=1)
    """Requests a second that a client may send to the application, above which it gets 429."""
    rate_burst: int = Field(default=40, ge=0)
    """Requests above the rate that are let through in a rush."""
    rate_exempt: list[Network] = []
    """Clients without that limit."""
    timeout_seconds: int = Field(default=60, ge=1)
    """How long the application may be silent in a request; a WebSocket, too."""
    frontend: str | None = None
    """Static files: a directory on the controller (absolute, or relative to the repository), or the URL
    of a git repository. A file that exists is served; what does not is asked of the application."""
    frontend_revision: str = "HEAD"
    """Of a git repository: branch, tag, or all 40 digits of a commit."""
    metrics_path: str = Field(default="/metrics", pattern=r"^/[A-Za-z0-9_/-]+$")
    """Path (and what is below it) that is not public."""
    metrics_sources: list[Network] = []
    """Who may ask for it, besides the host itself."""
    ipv6: bool = True
    """Listen on IPv6, too; false for hosts where it is switched off in the kernel."""
    log_days: int = Field(default=14, ge=1)
    """Days for which access logs are kept."""

    # What the template asks

    def has(self, feature: Literal["http2", "reject"], here: Here) -> bool:
        """Whether the distribution's nginx knows the directive."""
        series = here.machine.codename if here.machine else "bookworm"
        return series not in (BEFORE_1_25 if feature == "http2" else BEFORE_1_19)

    def upstreams(self, here: Here) -> list[str]:
        """Where the application is: the socket on this host, the private address of others."""
        found = []
        for peer in here.peers("app"):
            port = peer.settings(here.topology.roles["app"]).port
            address = peer.private_address
            remote = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
            found.append("unix:/run/app/app.sock" if peer is here else remote)
        return found

    def names(self, here: Here) -> list[str]:
        """Names in the placeholder certificate."""
        return list(self.domains) or [here.name, here.private_address]

    # What it declares

    def secrets(self, here: Here) -> list[Secret]:
        return [self.tls_key] if self.tls_certificate else []

    def files(self, here: Here) -> list[Row]:
        frontend = [Directory(FRONTEND)] if self.frontend else []
        return [
            *frontend,
            *self._certificate(),
            File("/etc/nginx/nginx.conf", template="nginx/nginx.conf.j2", check=f"{_PORTS_FREE} && {_TEST}"),
            File("/etc/logrotate.d/groundwork-nginx", template="nginx/logrotate.j2"),
        ]

    def _certificate(self) -> list[Row]:
        if not self.tls_certificate:
            return []
        variables = {"certificate": _read(self.tls_certificate)}
        row = File(
            CERTIFICATE, template="nginx/tls.pem.j2", variables=variables, mode="600", secret=True, check=_PAIR
        )
        return [row]

    def flows(self) -> list[Flow]:
        return [Flow(source, self.role, port) for source in self.sources for port in (80, 443)]

    def errors(self, here: Here) -> Iterable[str]:
        if not self.frontend and not here.peers("app"):
            yield "nginx_frontend is not set, and no host is in the group app: nginx would have nothing to serve"
        for source in self.sources:
            try:
                here.topology.networks_of(source)
            except KeyError:
                yield f'nginx_sources: {source!r} is no role, no external, no network, and not "internet"'
        yield from self._certificate_errors()
        if self.frontend:
            try:
                tree(self.frontend, self.frontend_revision)
            except SourceError as error:
                yield f"nginx_frontend = {shown(self.frontend)!r}: {error}"

    def _certificate_errors(self) -> Iterable[str]:
        if not self.tls_certificate:
            return
        try:
            x509.load_pem_x509_certificates(_read(self.tls_certificate).encode())
        except OSError as error:
            yield f"nginx_tls_certificate = {self.tls_certificate!r}: {error.strerror}"
        except ValueError:
            yield f"nginx_tls_certificate = {self.tls_certificate!r}: is not a certificate in PEM form"


def _read(path: str) -> str:
    return Path(ROOT / path).read_text()


@role(Settings, "Nginx")
def nginx(settings: Settings, here: Here) -> None:
    # install
    apt.packages(name="Packages", present=["nginx", "openssl"])
    groups = ("app",) if "app" in here.roles else ()
    web = accounts.User("www-data", home="/var/www", system=True, groups=groups)
    accounts.users(name="User", users=[web])

    # configure
    after = []
    if not settings.tls_certificate:
        placeholder = self_signed(name="Placeholder certificate", path=CERTIFICATE, names=settings.names(here))
        after.append(placeholder)
    after.append(files.table(name="Configuration", rows=settings.files(here), settings=settings))
    if settings.frontend:
        release(
            name="Front end", tree=tree(settings.frontend, settings.frontend_revision), path=FRONTEND, keep=2
        )

    # run
    service.services(
        name="Service",
        services=[
            service.Service(
                "nginx.service",
                reads=("/etc/nginx/nginx.conf", "/etc/nginx/mime.types", CERTIFICATE),
                reload=True,
                ports=PORTS,
            )
        ],
        after=after,
    )
    wait.port(name="Ready", port=443, unit="nginx.service", seconds=30)
