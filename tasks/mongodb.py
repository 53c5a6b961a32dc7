"""MongoDB: one server with authorization, reachable by those who have a flow, users checked by logging in."""

from __future__ import annotations

from typing import Annotated, Any, Callable, ClassVar, Iterable, Literal

from pydantic import Field

from groundwork.roles import role
from groundwork.rows import Absent, Directory, File, Row
from groundwork.secrets import KEPT, Secret
from groundwork.settings import Address, Domain, HostSettings, Part, Port, RoleSettings, is_public, matching
from groundwork import certificates, takeover
from groundwork.takeover import BEFORE, Found, Met, asked, refused, told
from groundwork.topology import Flow, Here, Opening
from operations import files, mongodb as database, service, sysctl, takeover as before, wait
from tasks.packages import install

VENDOR = "https://repo.mongodb.org/apt"
PUBLISHED = {
    ("ubuntu", "jammy"): ("7.0", "8.0", "6.0"),
    ("ubuntu", "noble"): ("8.0",),
    ("debian", "bookworm"): ("7.0", "8.0"),
}
"""Series that the vendor publishes, ours first (MongoDB manual, "Install MongoDB Community Edition" on
Ubuntu and on Debian, for 6.0, 7.0 and 8.0). There is none for Debian trixie."""

FINGERPRINTS = {
    "6.0": "39BD841E4BE5FB195A65400E6A26B1AE64C3C388",
    "7.0": "E58830201F7DD82CD808AA84160D26BB1785BA38",
    "8.0": "4B0752C1BCA238C0B4EE14DC41DE058A4E7DCA05",
}
"""Of the vendor's release signing keys."""

PACKAGES = ("mongodb-org", "mongodb-org-database", "mongodb-org-server", "mongodb-mongosh")
PYMONGO = "python3-pymongo"
"""The distribution's: by it Groundwork asks for users and collections. mongosh is for people."""
SYSCTLS = {
    "vm.swappiness": 1,
    # Two memory maps a connection, 64000 connections.
    "vm.max_map_count": 128000,
}
"""MongoDB manual, "Production Notes for Self-Managed Deployments"."""

LOG = "/var/log/mongodb/mongod.log"
KEPT_PASSWORD = f"{KEPT}/mongodb-admin"
CHECK = f"{files.LIB}/mongodb-check"
EVERYWHERE = ("0.0.0.0", "::")

CACHE_SHARE = 0.6
"""Of the role's memory for WiredTiger's cache: the rest is connections, sorts, and the allocator's slack
(the manual's own default is half of what is above 1 GiB)."""


_NO_ADMIN = {
    "refused": (
        "it refuses the administrator admin with the secret mongodb/admin. On the host, as an administrator that it knows: "
        "`mongosh --port {port} -u NAME -p --authenticationDatabase admin`, there `db.getSiblingDB('admin').createUser({{user: "
        "'admin', pwd: passwordPrompt(), roles: ['userAdminAnyDatabase']}})` (changeUserPassword, where there is an admin); and "
        "the same password into the secret (python -m groundwork.secrets rotate mongodb/admin --no-generate)"
    ),
    "poor": (
        "its user admin may not manage users: as an administrator that it knows, `db.getSiblingDB('admin')"
        ".grantRolesToUser('admin', ['userAdminAnyDatabase'])`"
    ),
}


class User(Part):
    """A user of one database, who logs in there (`authSource` is the database)."""

    name: Annotated[
        str, matching(r"[A-Za-z_][A-Za-z0-9_-]{0,62}", "letters, digits, _ and - (63 at most, the first no digit or -)")
    ]
    """Its password is the secret mongodb/<name>."""
    database: Annotated[str, matching(r"[A-Za-z0-9_-]{1,63}", "letters, digits, _ and - (63 at most)")]
    """Its own database."""
    roles: list[str] = ["readWrite"]
    """Built-in roles on that database: all that it has."""
    state: Literal["present", "absent"] = "present"
    """absent removes the user, and no data."""


class Index(Part):
    """An index, as createIndex takes it."""

    keys: dict[str, Literal[1, -1, "text", "2dsphere", "hashed"]]
    """Field -> direction or kind, in order."""
    unique: bool = False
    """Refuse a second document with the same values."""
    expire_after: int | None = Field(default=None, ge=0)
    """Seconds after which a document goes (a TTL index)."""


class TimeSeries(Part):
    """What makes a collection a time series; MongoDB's own names."""

    timeField: str
    """Field of the date of each document."""
    metaField: str | None = None
    """Field that says whose measurement it is."""
    granularity: Literal["seconds", "minutes", "hours"] = "seconds"
    """How close measurements of one source follow each other."""


class Collection(Part):
    """A collection that shall exist. One that exists with other options is told, never dropped."""

    database: str
    """A database of one of the users, who creates it."""
    name: Annotated[
        str, matching(r"[A-Za-z_][A-Za-z0-9_.-]{0,119}", "letters, digits, _, . and - (120 at most, the first a letter or _)")
    ]
    """Its name."""
    timeseries: TimeSeries | None = None
    """Makes it a time series."""
    indexes: list[Index] = []
    """Indexes that shall exist; others are left alone."""


class Settings(RoleSettings):
    """MongoDB."""

    role = "mongodb"
    mark = "/etc/systemd/system/mongod.service.d/groundwork.conf"
    units = ("mongod.service",)
    random_secrets = True
    holds = PACKAGES
    memory_weight = 4
    memory_minimum = 512

    port: Port = 27017
    """TCP port."""
    bind_addresses: list[Address] | None = None
    """Addresses to listen on besides loopback; by default those by which a flow comes: the private address, the
    private link's."""
    series: Annotated[str, matching(r"[0-9]+\.[0-9]+", 'two numbers such as "7.0"')] | None = None
    """Release series such as "7.0"; by default what the vendor publishes for the distribution."""
    version: Annotated[str, matching(r"[0-9]+\.[0-9]+\.[0-9]+", 'three numbers such as "7.0.14"')] | None = None
    """Exact version of the server to install and hold; by default the newest of the series, then held."""
    repository: str = VENDOR
    """Where the packages are: the vendor's, or a company mirror of it."""
    repository_key: str | None = None
    """Key of the repository: a URL, or a file on the controller; by default the vendor's for the series."""
    data_directory: Literal["/var/lib/mongodb"] = "/var/lib/mongodb"
    """Where the vendor's package keeps the data."""
    users: list[User] = []
    """Application users. Who is not in the list is left alone; {"name": …, "database": …, "state": "absent"}
    removes one."""
    collections: list[Collection] = []
    """Collections and indexes that shall exist."""

    tls: Literal["off", "provided"] = "off"
    """off: for hosts that reach it by a private network. provided: every client speaks TLS, with the certificate
    in mongodb_tls_certificate; then flows may come from public networks, too."""
    tls_certificate: Secret = Secret("mongodb/tls_certificate")
    """Certificate with its chain, PEM, the server's own first; needed for "provided"."""
    tls_key: Secret = Secret("mongodb/tls_key")
    """Key of mongodb_tls_certificate, PEM; needed for "provided"."""
    tls_authority: str | None = None
    """Certificates that clients trust, such as a company's authority, PEM: a file on the controller, absolute or
    relative to the repository. By default those that the clients' systems trust."""
    tls_name: Domain | None = None
    """Host name that clients connect to, which the certificate has and their DNS knows. By default they connect
    to addresses, which the certificate must then have: public_address, where it is set, for who is let in as a network."""

    certificate_file: ClassVar[str] = "/etc/mongodb/tls.pem"
    authority_file: ClassVar[str] = "/etc/mongodb/authority.pem"

    @property
    def present(self) -> list[User]:
        """Users who shall be there."""
        return [user for user in self.users if user.state == "present"]

    def series_for(self, here: Here) -> str:
        """The series to install on a host."""
        return self.series or self._published(here)[0]

    def _published(self, here: Here) -> tuple[str, ...]:
        machine = here.machine
        system = (machine.distribution, machine.codename) if machine else ("debian", "bookworm")
        return PUBLISHED.get(system, ("none",))

    def listens_on(self, here: Here) -> list[str]:
        """Addresses for `net.bindIp`."""
        wanted = self.bind_addresses if self.bind_addresses is not None else here.binds(self.port)
        everywhere = [address for address in wanted if address in EVERYWHERE]
        # mongod can't bind an address again that "everywhere" of the same family holds already.
        taken = {":" in address for address in everywhere}
        others = [address for address in ["127.0.0.1", *wanted] if (":" in address) not in taken]
        return list(dict.fromkeys([*everywhere, *others]))

    def check(self, here: Here) -> str:
        """Of a candidate: its addresses are the host's, nobody else has the port, and mongod takes it."""
        # The link may be down: the kernel lets mongod listen on its address all the same (tasks/link.py).
        addresses = " ".join(address for address in self.listens_on(here) if address not in (*EVERYWHERE, here.link_address))
        everywhere = any(address in EVERYWHERE for address in self.listens_on(here))
        port_free = files.ports_free(
            "mongod.service", {self.port: "mongodb_port"}, () if everywhere else self.listens_on(here)
        )
        return (
            f'for a in {addresses}; do [ -n "$(ip -o addr show to $a)" ] || '
            '{ echo "$a is no address of this host: see mongodb_bind_addresses and private_address" >&2; break; }; '
            f"done 2>&1 | {{ ! grep . >&2; }} && {port_free} && {CHECK} {{}}"
        )

    def cache_size(self, here: Here) -> float:
        """GB for `wiredTiger.engineConfig.cacheSizeGB`, whose least is 0.25."""
        return max(0.25, round(here.memory_share(self.role) * CACHE_SHARE / 1024, 2))

    def huge_pages(self, here: Here) -> str:
        """For transparent_hugepage/enabled: 8.0's allocator wants them, earlier ones suffer by them."""
        return "always" if float(self.series_for(here)) >= 8.0 else "never"

    def secrets(self, here: Here) -> list[Secret]:
        tls = [self.tls_certificate, self.tls_key] if self.tls == "provided" else []
        return [Secret("mongodb/admin"), *(Secret(f"mongodb/{user.name}") for user in self.present), *tls]

    def given_secrets(self) -> list[Secret]:
        return [self.tls_certificate, self.tls_key]

    def secret_errors(self, here: Here, secret: Callable[[str], str]) -> Iterable[str]:
        if self.tls != "provided":
            return
        certificate, key = ((f"secret {name}", secret(name)) for name in (self.tls_certificate.name, self.tls_key.name))
        authority = certificates.read(self.tls_authority) if self.tls_authority else None
        yield from certificates.pair_errors(certificate, key, self.tls_names(here), authority)

    def tls_names(self, here: Here) -> list[str]:
        """What those who have a flow to it connect to; the host's own programs do so by loopback."""
        if self.tls_name:
            return [self.tls_name]
        opening = self._opening(here)
        sources = {flow.source for flow in self.flows()} | set(opening.sources if opening else ())
        clients = [other for other in here.topology.hosts.values() if other is not here and sources & set(other.roles)]
        addresses = [client.address_of(here) for client in clients]
        if sources - set(here.topology.roles):
            # Behind a NAT, such as EC2's, whoever is not of the inventory knows the public one only.
            addresses.append(here.settings(HostSettings).public_address or here.private_address)
        return [address for address in dict.fromkeys(addresses) if address]

    def flows(self) -> list[Flow]:
        return [Flow(source, self.role, self.port, nearest=True) for source in ("app", "training")]

    def errors(self, here: Here) -> Iterable[str]:
        # One that moves to another database may be there once more, absent from the one it leaves.
        names = [user.name for user in self.present]
        pairs = [(user.name, user.database) for user in self.users]
        twice = {name for name, database in pairs if names.count(name) > 1 or pairs.count((name, database)) > 1}
        yield from (f"mongodb_users: {name!r} is there twice" for name in sorted(twice - {"admin"}))
        if "admin" in [user.name for user in self.users]:
            yield "mongodb_users: 'admin' is the administrator's name, call the user otherwise"
        owners = {user.database for user in self.present if {"readWrite", "dbOwner"} & set(user.roles)}
        for collection in self.collections:
            if collection.database not in owners:
                yield (
                    f"mongodb_collections: {collection.database}.{collection.name}: no user of "
                    "mongodb_users has readWrite on that database, and it is such a user who creates it"
                )
        yield from self._series_errors(here)
        yield from self._flow_errors(here)
        if self.tls_authority:
            yield from certificates.file_errors("mongodb_tls_authority", self.tls_authority)

    def meets(self, found: Found, here: Here) -> Iterable[Met]:
        yield from self.taken_ports(found)
        yield from found.vendor("mongodb")
        there = found.mongodb
        if there.ours or not there.data:
            return
        unfit = [*self._unfit(there, here, found.runs("mongod.service")), *self._unasked(there, found)]
        yield from unfit
        if unfit:
            return
        kept = f"its data and users stay; mongod.conf is kept as /etc/mongod.conf{BEFORE}, and mongod is restarted once"
        changes = []
        if not there.guarded:
            changes.append("it asks nobody for a password, and will: the administrator admin is made on its data")
        if there.port != self.port:
            changes.append(f"it moves from port {there.port} to {self.port}")
        if self.tls == "off" and there.options.get("mode", "").endswith(("TLS", "SSL")) and not there.options["mode"].startswith("disabled"):
            changes.append("it will not speak TLS any more")
        text = f"MongoDB {there.version} has data in {there.path}: {'; '.join([*changes, kept])}"
        yield asked(text) if changes else told(text)

    def _unfit(self, there: takeover.MongoDB, here: Here, runs: bool) -> Iterable[Met]:
        """Why data that is there can't be taken over as it is."""
        if there.data - {self.data_directory} and there.path != self.data_directory:
            yield refused(
                f"its data is in {there.path}: stop mongod, move it (`mv {there.path} {self.data_directory}`, owner mongodb), "
                f"set dbPath: {self.data_directory} in /etc/mongod.conf, start mongod"
            )
        for name in ("replSetName", "clusterRole"):
            if name in there.options:
                yield refused(
                    f"{name} = {there.options[name]}: it is one of several servers, and Groundwork runs single ones: use "
                    'externals = [external("mongodb", host=…)] and take this host out of the group mongodb'
                )
        for name in ("directoryPerDB", "directoryForIndexes", "enableEncryption"):
            if there.options.get(name) == "true":
                yield refused(f"its data was made with {name}, which Groundwork does not set: mongodump, and mongorestore into a new host")
        series = ".".join(there.version.split(".")[:2])
        if series and series != self.series_for(here):
            yield refused(
                f"it is {there.version}, and {self.series_for(here)} is declared: set mongodb_series = \"{series}\", take it over, "
                "and upgrade later, one series at a time (MongoDB manual, \"Upgrade\")"
            )
        if not runs:
            yield refused(f"there is data in {there.path}, and mongod does not run, so nobody can ask it for its users: `systemctl start mongod`")
        elif there.login in ("refused", "poor"):
            yield refused(_NO_ADMIN[there.login].format(port=there.port))

    def _unasked(self, there: takeover.MongoDB, found: Found) -> Iterable[Met]:
        """Why it can't be asked for the administrator; with no mongosh, operations.takeover.mongodb asks it later."""
        if there.login not in ("unknown", "silent"):
            return
        unasked = "it can't be asked whether it has the administrator admin: "
        if not found.runs("mongod.service", there.port, ("127.0.0.1", "0.0.0.0")):
            yield refused(
                f"{unasked}mongod does not listen on 127.0.0.1, port {there.port}: add 127.0.0.1 to net.bindIp in /etc/mongod.conf, "
                "`systemctl restart mongod`"
            )
        elif there.options.get("mode") in ("requireTLS", "requireSSL"):
            allow = there.options["mode"].replace("require", "prefer")
            yield refused(f"{unasked}it requires TLS: set mode: {allow} in /etc/mongod.conf, `systemctl restart mongod`")
        elif there.login == "silent":
            yield refused(f"{unasked}it does not answer on 127.0.0.1, where `mongosh --port {there.port}` says why")
        elif there.guarded:
            yield refused(f"{unasked}`apt-get install mongodb-mongosh`")

    def _series_errors(self, here: Here) -> Iterable[str]:
        published = self._published(here)
        if here.machine and self.repository == VENDOR and self.series_for(here) not in published:
            table = "; ".join(f"{name} {code}: {', '.join(s)}" for (name, code), s in PUBLISHED.items())
            yield (
                f"mongodb_series: the vendor publishes no {self.series or 'series'} for "
                f"{here.machine.distribution} {here.machine.codename}. It publishes {table}"
            )
        elif here.machine and self.series is None and published == ("none",):
            yield "mongodb_series: must be set, with a mongodb_repository of your own for this distribution"
        if self.version and not self.version.startswith(f"{self.series_for(here)}."):
            yield f"mongodb_version: {self.version} is not of the series {self.series_for(here)}"

    def _opening(self, here: Here) -> Opening | None:
        return next((item for item in here.openings() if (item.role, item.port) == (self.role, self.port)), None)

    def _flow_errors(self, here: Here) -> Iterable[str]:
        """Who is let in from networks that are not private."""
        opening = self._opening(here)
        for source, networks in (opening.sources if opening else {}).items():
            if networks is None:
                yield (
                    f'flows: "{source}" to mongodb is refused, since everybody could try passwords there: name the networks '
                    '(and, for public ones, set mongodb_tls = "provided")'
                )
            elif self.tls == "off" and (public := list(filter(is_public, networks))):
                yield (
                    f"flows: {source} reaches mongodb from {', '.join(public)}, which is no private network, and without TLS "
                    'all on the way could read it: set mongodb_tls = "provided" (docs/mongodb.md), or connect by the private link'
                )

    def _tls_files(self) -> list[Row]:
        """Before what names them; or, once nothing does, gone."""
        directory = Directory(self.certificate_file.rsplit("/", 1)[0])
        owner = {"owner": "mongodb", "group": "mongodb", "mode": "600"}
        certificate = File(self.certificate_file, template="mongodb/tls.pem.j2", secret=True, **owner)
        if not self.tls_authority:
            return [directory, certificate]
        return [directory, certificate, File(self.authority_file, content=certificates.read(self.tls_authority))]

    def _unused_files(self) -> list[Row]:
        unused = [] if self.tls == "provided" else [self.certificate_file]
        return [Absent(path) for path in [*unused, *([] if self.tls == "provided" and self.tls_authority else [self.authority_file])]]

    def files(self, here: Here) -> list[Row]:
        return [
            Directory("/etc/groundwork"),
            Directory(KEPT, mode="700"),
            File("/etc/mongosh.conf", template="mongodb/mongosh.conf.j2"),
            Directory(files.LIB),
            File(CHECK, source="mongodb/check", mode="755"),
            *(self._tls_files() if self.tls == "provided" else []),
            File(
                "/etc/mongod.conf",
                template="mongodb/mongod.conf.j2",
                check=self.check(here),
                keep=True,
            ),
            *self._unused_files(),
            Directory("/etc/systemd/system/mongod.service.d"),
            File("/etc/systemd/system/mongod.service.d/groundwork.conf", template="mongodb/mongod.service.j2"),
            File(
                "/etc/systemd/system/groundwork-huge-pages.service",
                template="mongodb/groundwork-huge-pages.service.j2",
            ),
            File("/etc/logrotate.d/groundwork-mongodb", template="mongodb/logrotate.j2"),
        ]

    def services(self, here: Here) -> list[service.Service]:
        return [
            service.Service("groundwork-huge-pages.service", running=not (here.machine and here.machine.container)),
            service.Service("mongod.service", reads=("/etc/mongod.conf", "/usr/bin/mongod")),
        ]

    def kept(self) -> list[Row]:
        """The administrator's password, once it is seen to work."""
        return [
            File(KEPT_PASSWORD, template="mongodb/kept.j2", mode="600", secret=True),
            Absent(f"{KEPT_PASSWORD}.new"),
        ]

    def repositories(self, here: Here) -> dict[str, dict[str, Any]]:
        return {"mongodb-org": self.repository_for(here)}

    def installs(self, here: Here) -> dict[str, str | None]:
        return {name: self.version if name.startswith("mongodb-org") else None for name in (*PACKAGES, PYMONGO)}

    def repository_for(self, here: Here) -> dict:
        """Arguments for operations.repository: where the series is for this distribution."""
        machine = here.machine
        assert machine is not None
        series = self.series_for(here)
        return {
            "uris": [f"{self.repository}/{machine.distribution}"],
            "suites": [f"{machine.codename}/mongodb-org/{series}"],
            "components": ["multiverse" if machine.distribution == "ubuntu" else "main"],
            "key": self.repository_key or f"https://pgp.mongodb.com/server-{series}.asc",
            "fingerprint": None if self.repository_key else FINGERPRINTS.get(series),
        }


@role(Settings, "MongoDB")
def mongodb(settings: Settings, here: Here) -> None:
    """Install from the vendor's repository, make the first administrator in private, then open up."""
    install(settings, here)
    before.mongodb(name="Data that was here before", found=here.found)
    configured = files.table(name="Configuration", rows=settings.files(here), settings=settings)
    sysctl.settings(name="Kernel", role="mongodb", values=SYSCTLS)
    database.administrator(
        name="Administrator", data_directory=settings.data_directory, kept=KEPT_PASSWORD
    )
    service.services(
        name="Service",
        services=settings.services(here),
        after=[configured],
    )
    wait.port(name="Ready", port=settings.port, unit="mongod.service", seconds=120, log=LOG)
    if settings.tls == "provided":
        database.certificate(name="Certificate", port=settings.port, secret=settings.tls_certificate.name, kept=KEPT_PASSWORD)
    database.content(
        name="Users and collections",
        port=settings.port,
        tls=settings.tls != "off",
        kept=KEPT_PASSWORD,
        users=[user.model_dump() for user in settings.users],
        collections=[collection.model_dump() for collection in settings.collections],
    )
    files.table(name="Kept password", rows=settings.kept(), settings=settings)
