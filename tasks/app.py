"""The application: any ASGI application from a directory or git, under gunicorn."""

from __future__ import annotations

from typing import Annotated, Iterable, Literal

from pydantic import Field

from groundwork import locks, uris
from groundwork.roles import role
from groundwork.rows import Directory, File, Row
from groundwork.secrets import Secret
from groundwork.settings import HostSettings, Port, RoleSettings, matching
from groundwork.sources import SourceError, Tree, shown, tree
from groundwork.topology import Flow, Here
from operations import accounts, apt, files, service, uv, wait
from operations.release import release

ROOT = "/srv/app"
CONFIGURATION = "/etc/app"
SOCKET = "/run/app/app.sock"
UNIT = "app.service"
NEEDED = ("gunicorn", "uvicorn-worker")

# gunicorn's own --check-config starts the application, too. Its environment comes later than this file: what is
# there is that of the running release, and at the first run none.
CHECK = f"""if [ -x {ROOT}/current/.venv/bin/gunicorn ]; then python={ROOT}/current/.venv/bin/python; else python=python3; fi
$python - {{}} <<'END'
import runpy, sys
values = runpy.run_path(sys.argv[1])
try:
    from gunicorn.config import Config
except ImportError:
    sys.exit()
config = Config()
for name, value in values.items():
    if name in config.settings:
        try:
            config.set(name, value)
        except Exception as error:
            sys.exit(f"{{sys.argv[1]}}: {{name}} = {{value!r}}: {{error}}")
END"""


Variable = Annotated[str, matching(r"[A-Za-z_][A-Za-z0-9_]*", "a name for an environment variable")]
UrlPath = Annotated[str, matching(r"/[A-Za-z0-9_./~-]*", "the path of a URL such as /health")]


class Settings(RoleSettings):
    """The application."""

    role = "app"
    mark = "/etc/app/gunicorn.conf.py"
    units = ("app.service",)
    memory_weight = 3
    memory_minimum = 192

    source: str | None = None
    """What to deploy: a directory on the controller (absolute, or relative to the repository; of a git
    work tree, what is not ignored), or the URL of a git repository, which the controller reads."""
    revision: str = "HEAD"
    """Of a git repository: branch, tag, or all 40 digits of a commit."""
    module: Annotated[str, matching(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*(\(\))?", "module:name, such as app.main:app")] = "app.main:app"
    """Where the ASGI application is: module:name."""
    requirements: str | None = None
    """The lock, a path in the source: a requirements file of pip or uv, or uv.lock beside its
    pyproject.toml. By default requirements.txt, or else uv.lock."""
    python: Annotated[str, matching(r"[A-Za-z0-9_./+-]+", "a program's name or path, such as python3.11")] | None = None
    """Interpreter on the host, a name or a path; by default the distribution's python3."""
    build: bool = False
    """Allow packages that come as source only; app_packages then names what building them takes."""
    packages: list[Annotated[str, matching(r"[a-z0-9][a-z0-9+.-]+", "a package's name, such as libpq5")]] = []
    """Packages of the distribution that the application needs besides, such as libpq5 or ffmpeg; names of
    real packages, not of virtual ones."""
    keep_releases: int = Field(default=5, ge=2)
    """Releases kept on a host, the current one among them."""

    workers: int | None = Field(default=None, ge=1)
    """Worker processes. By default two for each core and one more (gunicorn's documentation, "How Many
    Workers?"), but no more than the role's memory has room for."""
    worker_memory: int = Field(default=128, ge=16)
    """MiB that a worker takes. The example application's take 103."""
    timeout_seconds: int = Field(default=60, ge=1)
    """A worker that gives no sign of life for so long is killed."""
    graceful_seconds: int = Field(default=30, ge=1)
    """How long a worker may finish its requests when it is stopped."""
    max_requests: int = Field(default=10000, ge=0)
    """A worker is replaced after so many requests (and up to a tenth more), against leaks; 0 for never."""
    port: Port = 8080
    """TCP port on the private address, opened only where nginx is on another host."""

    health_path: UrlPath | None = "/health"
    """Answers 200 when a process serves; None for an application that has no such path."""
    ready_path: UrlPath | None = "/ready"
    """Answers 200 when the stores that it needs answer it; None for an application without."""
    start_seconds: int = Field(default=60, ge=1)
    """How long the application may take until it is healthy, and then ready."""

    environment: dict[Variable, str | int | bool | Secret] = {}
    """More variables of the application's environment, and other values for ours:
    {"SENTRY_DSN": Secret("app/sentry_dsn"), "ALLOWED_ORIGINS": "https://example.org"}."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    """LOG_LEVEL: DEBUG, INFO, WARNING, ERROR or CRITICAL."""
    mongodb_user: str | None = None
    """Which of mongodb_users the application is; by default the first. Of a MongoDB that is not
    ours: its user, with the secret mongodb/<user>."""
    mongodb_database: str | None = None
    """MONGO_DB, and where the user logs in; by default the user's database."""
    mongodb_max_pool_size: int = Field(default=50, ge=1)
    """MONGO_MAX_POOL_SIZE: connections of a worker."""
    mongodb_timeout_ms: int = Field(default=30000, ge=1)
    """MONGO_TIMEOUT_MS: how long an operation may take."""
    redis_user: str = "app"
    """Redis user, with the secret redis/<user>."""
    redis_database: int = Field(default=0, ge=0)
    """REDIS_DB."""
    postgresql_user: str = "app"
    """PostgreSQL user, with the secret postgresql/<user>."""
    postgresql_database: str = "app"
    """PostgreSQL database."""
    postgresql_pool_size: int = Field(default=20, ge=1)
    """DB_POOL_SIZE: connections of a worker."""
    postgresql_max_overflow: int = Field(default=10, ge=0)
    """DB_MAX_OVERFLOW: connections of a worker above these in a rush."""
    s3_bucket: str | None = None
    """AWS_S3_BUCKET."""
    s3_region: str | None = None
    """AWS_S3_REGION."""

    # What is deployed

    def tree(self) -> Tree:
        """The release: the source, with a link to its environment.

        Raises:
            SourceError: when the source can't be read or has no lock.
        """
        return self._source().with_link(".venv", f"{ROOT}/environments/{uv.name(self.lock(), self.python)}")

    def lock(self) -> str:
        """The text of the lock."""
        return locks.of_tree(self._source(), self.requirements)

    def _source(self) -> Tree:
        return tree(self.source or "", self.revision)

    # What it runs as

    def worker_count(self, here: Here) -> int:
        """Workers that gunicorn starts."""
        room = here.memory_share(self.role) // self.worker_memory
        return self.workers or max(1, min(2 * here.cores + 1, room))

    def binds(self, here: Here) -> list[str]:
        """Where gunicorn listens: the socket, and the private address if a proxy elsewhere asks it."""
        address = f"[{here.private_address}]" if ":" in here.private_address else here.private_address
        elsewhere = any(peer is not here for peer in here.peers("nginx"))
        return [f"unix:{SOCKET}", *([f"{address}:{self.port}"] if elsewhere else [])]

    def variables(self, here: Here, secret: uris.Secrets) -> dict[str, str]:
        """The application's environment.

        Args:
            secret: gives a secret's value by its name.
        """
        given = self.environment
        found = {"ENVIRONMENT": here.settings(HostSettings).environment, "LOG_LEVEL": self.log_level}
        if "MONGO_URI" not in given and here.address("mongodb"):
            user, database = self.mongodb_login(here)
            found |= uris.mongodb(here, user, database, secret)
            found["MONGO_MAX_POOL_SIZE"] = str(self.mongodb_max_pool_size)
            found["MONGO_TIMEOUT_MS"] = str(self.mongodb_timeout_ms)
        if "REDIS_URL" not in given:
            found |= uris.redis(here, self.redis_user, self.redis_database, secret)
        found |= uris.chromadb(here)
        if "DATABASE_URL" not in given:
            found |= uris.postgresql(here, self.postgresql_user, self.postgresql_database, secret)
        if "DATABASE_URL" in {**found, **given}:
            found["DB_POOL_SIZE"] = str(self.postgresql_pool_size)
            found["DB_MAX_OVERFLOW"] = str(self.postgresql_max_overflow)
        found |= {"AWS_S3_BUCKET": self.s3_bucket} if self.s3_bucket else {}
        found |= {"AWS_S3_REGION": self.s3_region} if self.s3_region else {}
        return found | {
            name: secret(value.name) if isinstance(value, Secret) else _text(value)
            for name, value in given.items()
        }

    def mongodb_login(self, here: Here) -> tuple[str, str]:
        """User and database for MongoDB; empty where the settings do not tell."""
        users = here.settings_of("mongodb").present if here.peers("mongodb") else []
        named = [user for user in users if self.mongodb_user in (None, user.name)]
        user = self.mongodb_user or (named[0].name if named else "")
        return user, self.mongodb_database or (named[0].database if named else "")

    def secrets(self, here: Here) -> list[Secret]:
        wanted: list[str] = []
        self.variables(here, lambda name: wanted.append(name) or "")
        return [Secret(name) for name in wanted]

    def files(self, here: Here) -> list[Row]:
        return [
            Directory(ROOT, group="app", mode="750"),
            Directory(CONFIGURATION),
            *uris.mongodb_authority(here),
            File(
                f"{CONFIGURATION}/environment", template="app/environment.j2", mode="600", secret=True
            ),
            File(
                f"{CONFIGURATION}/gunicorn.conf.py",
                template="app/gunicorn.conf.py.j2",
                check=f"{self._ports_free(here)}{CHECK}",
            ),
            File("/etc/systemd/system/app.service", template="app/app.service.j2", keep=True),
        ]

    def _ports_free(self, here: Here) -> str:
        if len(self.binds(here)) == 1:
            return ""
        return f"{files.ports_free(UNIT, {self.port: 'app_port'}, [here.private_address])} || exit 1\n"

    def flows(self) -> list[Flow]:
        return [Flow("nginx", self.role, self.port)]

    def errors(self, here: Here) -> Iterable[str]:
        if self.source is None:
            yield "app_source is not set: it names the application to deploy"
            return
        where = f"app_source = {shown(self.source)!r}"
        try:
            missing = [name for name in NEEDED if name not in locks.names(self.lock())]
        except SourceError as error:
            yield f"{where}: {error}"
            return
        if missing:
            yield (
                f"{where}: its lock has no {' and no '.join(missing)}, to run it with: add to the requirements, "
                "and lock again"
            )
        room = here.memory_share(self.role)
        if self.workers and self.workers * self.worker_memory > room:
            yield (
                f"app_workers = {self.workers} takes {self.workers * self.worker_memory} MiB (app_worker_memory "
                f"each), and the host has {room} for the application"
            )
        if "MONGO_URI" not in self.environment and here.address("mongodb"):
            yield from self._mongodb_errors(here)

    def _mongodb_errors(self, here: Here) -> Iterable[str]:
        names = [user.name for user in here.settings_of("mongodb").present] if here.peers("mongodb") else None
        if names is not None and self.mongodb_user and self.mongodb_user not in names:
            yield f"app_mongodb_user = {self.mongodb_user!r} is none of mongodb_users ({', '.join(names)})"
        elif not all(self.mongodb_login(here)):
            yield (
                "app_mongodb_user and app_mongodb_database are not set, and there is no mongodb_users to take "
                "them from"
            )


def _text(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@role(Settings, "Application")
def app(settings: Settings, here: Here) -> None:
    # install
    apt.packages(name="Packages", present=[*uv.PACKAGES, "curl", *settings.packages])
    accounts.users(name="User", users=[accounts.User("app", home="/var/lib/app", system=True)])

    # configure
    configured = files.table(name="Configuration", rows=settings.files(here), settings=settings)
    environment = uv.environment(
        name="Environment",
        path=f"{ROOT}/environments",
        requirements=settings.lock(),
        python=settings.python,
        build=settings.build,
        link=False,
    )
    released = release(name="Release", tree=settings.tree(), path=ROOT, keep=settings.keep_releases)

    # run
    service.services(
        name="Service",
        services=[
            service.Service(
                "app.service",
                reads=(
                    f"{ROOT}/current",
                    f"{ROOT}/current/.venv",
                    f"{CONFIGURATION}/environment",
                    f"{CONFIGURATION}/gunicorn.conf.py",
                    uris.AUTHORITY,
                ),
                ports={settings.port: "app_port"} if len(settings.binds(here)) > 1 else {},
            )
        ],
        after=[configured, environment, released],
    )
    if settings.health_path:
        wait.http(
            name="Health",
            url=f"http://localhost{settings.health_path}",
            unit="app.service",
            seconds=settings.start_seconds,
            unix_socket=SOCKET,
        )
    if settings.ready_path:
        wait.http(
            name="Ready",
            url=f"http://localhost{settings.ready_path}",
            unit="app.service",
            seconds=settings.start_seconds,
            unix_socket=SOCKET,
        )
