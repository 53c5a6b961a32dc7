"""Nginx: TLS, and the way in to the application and its front end."""

from __future__ import annotations

from typing import Annotated, Iterable, Literal

from pydantic import Field

from facts.certificate import LETSENCRYPT, LINEAGE, OFF
from groundwork import certificates
from groundwork.roles import role
from groundwork.rows import Absent, Directory, File, Row
from groundwork.secrets import Secret
from groundwork.settings import Domain, Network, RoleSettings, Size, bracketed, is_address, matching
from groundwork.sources import SourceError, shown, tree
from groundwork.takeover import BEFORE, Found, Met, asked, told
from groundwork.topology import INTERNET, Flow, Here
from operations import accounts, files, service, wait
from operations.certificate import from_authority, self_signed
from operations.release import release
from tasks.packages import install

FRONTEND = "/srv/frontend"
CERTIFICATE = "/etc/nginx/tls.pem"
"""Certificate, chain and key in one file, so that the three are always of one kind."""
ACME = "acme"
"""Value of nginx_tls_certificate that asks an authority for it."""
CHALLENGES = "/srv/acme"
"""Where certbot answers what the authority asks on port 80."""
HOOK = f"{LETSENCRYPT}/renewal-hooks/deploy/groundwork-nginx"
"""What certbot runs after a renewal: brings the certificate to nginx."""
AUTHORITY = f"{LETSENCRYPT}/groundwork-authority.pem"
RENEWAL = "/etc/systemd/system/certbot.service.d/groundwork.conf"
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
    mark = "/etc/logrotate.d/groundwork-nginx"
    units = ("nginx.service",)

    domains: list[Domain] = []
    """Host names that are served; others are refused. Empty serves whatever name is asked for."""
    tls_certificate: str | None = None
    """Certificate with its chain, PEM: a file on the controller, absolute or relative to the repository.
    Or "acme": certbot gets it from an authority and renews it. By default a self-signed placeholder is
    made on the host."""
    tls_key: Secret = Secret("nginx/tls_key")
    """Key of nginx_tls_certificate, PEM; needed only with a file."""
    acme_email: Annotated[str, matching(r"[^@\s]+@[^@\s]+", "an address such as anna@example.org")] | None = None
    """Address that the authority knows the account by; needed for "acme"."""
    acme_terms_agreed: bool = False
    """You have read the authority's terms of service (Let's Encrypt: https://letsencrypt.org/repository/)
    and agree to them; needed for "acme"."""
    acme_directory: Annotated[str, matching(r"https://[^\s\"'$]+", "a URL that begins with https://")] = (
        "https://acme-v02.api.letsencrypt.org/directory"
    )
    """URL of the authority's directory. To try with, Let's Encrypt has
    https://acme-staging-v02.api.letsencrypt.org/directory, whose certificates no browser trusts."""
    acme_authority: str | None = None
    """For an authority of your own: the certificates that vouch for acme_directory, PEM, a file on the
    controller. certbot on that host then trusts no others."""
    hsts_seconds: int = Field(default=31536000, ge=0)
    """How long browsers keep to HTTPS (Strict-Transport-Security); 0 sends no such header."""
    hsts_subdomains: bool = False
    """Let that hold for all names below the domains, too."""
    content_security_policy: Annotated[str, matching(r'[^"\\$\n]*', 'one line without ", \\ and $')] | None = (
        "frame-ancestors 'self'; base-uri 'self'; object-src 'none'"
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
    metrics_path: Annotated[str, matching(r"/[A-Za-z0-9_/-]+", "the path of a URL such as /metrics")] = "/metrics"
    """Path (and what is below it) that is not public."""
    metrics_sources: list[Network] = []
    """Who may ask for it, besides the host itself."""
    ipv6: bool = True
    """Listen on IPv6, too; false for hosts where it is switched off in the kernel."""
    log_days: int = Field(default=14, ge=1)
    """Days for which access logs are kept."""

    # What the template asks

    @property
    def acme(self) -> bool:
        """Whether an authority is asked for the certificate."""
        return self.tls_certificate == ACME

    @property
    def provided(self) -> bool:
        """Whether the certificate is a file on the controller."""
        return bool(self.tls_certificate) and not self.acme

    def has(self, feature: Literal["http2", "reject"], here: Here) -> bool:
        """Whether the distribution's nginx knows the directive."""
        series = here.machine.codename if here.machine else "bookworm"
        return series not in (BEFORE_1_25 if feature == "http2" else BEFORE_1_19)

    def upstreams(self, here: Here) -> list[str]:
        """Where the application is: the socket on this host, the address of others."""
        found = []
        for peer in self._applications(here):
            port = peer.settings(here.topology.roles["app"]).port
            address = here.address_of(peer)
            remote = f"{bracketed(address)}:{port}"
            found.append("unix:/run/app/app.sock" if peer is here else remote)
        return found

    def _applications(self, here: Here) -> list[Here]:
        """Hosts with the application, but for those that plain HTTP would reach across the internet."""
        return [peer for peer in here.peers("app") if here.is_private_to(peer)]

    def names(self, here: Here) -> list[str]:
        """Names in the placeholder certificate."""
        return list(self.domains) or [here.name, here.private_address]

    # What it declares

    def secrets(self, here: Here) -> list[Secret]:
        return [self.tls_key] if self.provided else []

    def services(self, here: Here) -> list[service.Service]:
        reads = ("/etc/nginx/nginx.conf", "/etc/nginx/mime.types", CERTIFICATE)
        renewal = [
            service.Service("certbot.timer"),
            # The timer starts it: here only systemd is told of a changed drop-in.
            service.Service("certbot.service", enabled=None, running=None),
        ]
        return [service.Service("nginx.service", reads=reads, reload=True, ports=PORTS), *(renewal if self.acme else [])]

    def installs(self, here: Here) -> dict[str, str | None]:
        return dict.fromkeys(["nginx", "openssl", "logrotate", *(["certbot", "curl"] if self.acme else [])])

    def files(self, here: Here) -> list[Row]:
        frontend = [Directory(FRONTEND)] if self.frontend else []
        return [
            *frontend,
            *self._renewal(),
            *self._certificate(),
            File("/etc/nginx/nginx.conf", template="nginx/nginx.conf.j2", check=f"{_PORTS_FREE} && {_TEST}", keep=True),
            File("/etc/logrotate.d/groundwork-nginx", template="nginx/logrotate.j2"),
        ]

    def _certificate(self) -> list[Row]:
        if not self.provided:
            return []
        variables = {"certificate": certificates.read(self.tls_certificate)}
        row = File(
            CERTIFICATE, template="nginx/tls.pem.j2", variables=variables, mode="600", secret=True, check=_PAIR
        )
        return [row]

    def _renewal(self) -> list[Row]:
        """What certbot needs; without ACME, nothing that could put another certificate over ours."""
        trust = [Absent(RENEWAL), Absent(AUTHORITY)]
        if not self.acme:
            return [Absent(HOOK), *trust, Absent(f"{LETSENCRYPT}/renewal/{LINEAGE}.conf", aside=OFF)]
        if self.acme_authority:
            trust = [
                File(AUTHORITY, content=certificates.read(self.acme_authority)),
                Directory(RENEWAL.rsplit("/", 1)[0]),
                File(RENEWAL, content=f"# Managed by Groundwork.\n[Service]\nEnvironment=REQUESTS_CA_BUNDLE={AUTHORITY}\n"),
            ]
        hooks = [Directory(f"{LETSENCRYPT}/renewal-hooks"), Directory(HOOK.rsplit("/", 1)[0])]
        hook = File(HOOK, source="nginx/install-certificate", mode="755", check="sh -n {}")
        return [Directory(CHALLENGES), *trust, *hooks, hook]

    def flows(self) -> list[Flow]:
        return [Flow(source, self.role, port) for source in self.sources for port in (80, 443)]

    def meets(self, found: Found, here: Here) -> Iterable[Met]:
        yield from self.taken_ports(found)
        if found.sites:
            yield asked(
                f"nginx has sites of its own, which will not be served any more: {', '.join(found.sites)}. These files "
                f"stay, and nginx.conf is kept as /etc/nginx/nginx.conf{BEFORE}"
            )
        elif found.runs("nginx.service") and not found.nginx_ours:
            yield told("nginx runs here, with the distribution's default site alone: the application's takes its place")

    def errors(self, here: Here) -> Iterable[str]:
        if not self.frontend and not self._applications(here):
            yield "nginx_frontend is not set, and no host is in the group app: nginx would have nothing to serve"
        if self.acme:
            yield from self._acme_errors(here)
        if self.provided:
            yield from certificates.file_errors("nginx_tls_certificate", self.tls_certificate)
        if self.frontend:
            try:
                tree(self.frontend, self.frontend_revision)
            except SourceError as error:
                yield f"nginx_frontend = {shown(self.frontend)!r}: {error}"

    def _acme_errors(self, here: Here) -> Iterable[str]:
        asked = 'nginx_tls_certificate = "acme"'
        if not self.domains:
            yield f"nginx_domains is empty: {asked} needs the names that the certificate is for"
        if not self.acme_email:
            yield f"nginx_acme_email is not set: {asked} needs an address that the authority knows you by"
        if not self.acme_terms_agreed:
            yield (
                f"nginx_acme_terms_agreed is not True: {asked} needs you to agree to the terms of service of the "
                f"authority at {self.acme_directory}"
            )
        for domain in self.domains:
            yield from self._domain_errors(domain, here)
        if INTERNET not in self.sources and not self.acme_authority:
            yield (
                f'nginx_sources = {self.sources}: {asked} needs "{INTERNET}", since the authority asks on port 80 and '
                "does not tell from where (but for one of your own, with nginx_acme_authority)"
            )
        if self.acme_authority:
            yield from certificates.file_errors("nginx_acme_authority", self.acme_authority)

    def _domain_errors(self, domain: str, here: Here) -> Iterable[str]:
        if is_address(domain):
            yield f"nginx_domains: {domain} is an address: certbot gets certificates for names only"
        elif "." not in domain and not self.acme_authority:
            yield f"nginx_domains: {domain} has no dot: no public authority gives a certificate for it"
        others = [
            peer.name
            for peer in here.topology.with_role(self.role)
            if peer is not here and domain.lower() in map(str.lower, peer.settings(Settings).domains)
        ]
        if others:
            yield (
                f"nginx_domains: {domain} is also served by {', '.join(others)}: the authority asks any one of them, and "
                "only the host that has begun can answer. With several hosts for one name, provide a certificate "
                "(nginx_tls_certificate = a file)"
            )


@role(Settings, "Nginx")
def nginx(settings: Settings, here: Here) -> None:
    # install
    install(settings, here)
    groups = ("app",) if "app" in here.roles else ()
    web = accounts.User("www-data", home="/var/www", system=True, groups=groups)
    accounts.users(name="User", users=[web])

    # configure
    after = []
    if not settings.provided:
        # nginx must answer on port 80 before an authority asks: with ACME, whatever is there is good enough.
        placeholder = self_signed(
            name="Placeholder certificate", path=CERTIFICATE, names=settings.names(here), keep=settings.acme
        )
        after.append(placeholder)
    after.append(files.table(name="Configuration", rows=settings.files(here), settings=settings))
    if settings.frontend:
        release(
            name="Front end", tree=tree(settings.frontend, settings.frontend_revision), path=FRONTEND, keep=2
        )

    # run
    service.services(
        name="Service",
        services=settings.services(here),
        after=after,
    )
    wait.port(name="Ready", port=443, unit="nginx.service", seconds=30)
    if settings.acme:
        from_authority(
            name="Certificate",
            path=CERTIFICATE,
            domains=settings.domains,
            email=settings.acme_email,
            directory=settings.acme_directory,
            authority=AUTHORITY if settings.acme_authority else None,
            webroot=CHALLENGES,
            install=HOOK,
        )
