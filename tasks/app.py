"""The application: any ASGI application from a directory or git, under gunicorn."""

from __future__ import annotations

from typing import Iterable

from pydantic import Field

from groundwork import uris
from groundwork.program import MongoDBSettings, ServerSettings, UrlPath
from groundwork.roles import role
from groundwork.rows import Directory, File, Row
from groundwork.settings import Port, bracketed
from groundwork.topology import Flow, Here
from operations import accounts, files, service, wait
from tasks.packages import install

CONFIGURATION = "/etc/app"
SOCKET = "/run/app/app.sock"
UNIT = "app.service"


class Settings(ServerSettings, MongoDBSettings):
    """The application."""

    role = "app"
    mark = "/etc/app/gunicorn.conf.py"
    units = ("app.service",)
    memory_weight = 3
    memory_minimum = 192

    workers: int | None = Field(default=None, ge=1)
    """Worker processes. By default two for each core and one more (gunicorn's documentation, "How Many
    Workers?"), but no more than the role's memory has room for."""
    worker_memory: int = Field(default=128, ge=16)
    """MiB that a worker takes. The example application's take 103."""
    max_requests: int = Field(default=10000, ge=0)
    """A worker is replaced after so many requests (and up to a tenth more), against leaks; 0 for never."""
    port: Port = 8080
    """TCP port, opened only where nginx is on another host."""

    ready_path: UrlPath | None = "/ready"
    """Answers 200 when the stores that it needs answer it; None for an application without."""
    mongodb_max_pool_size: int = Field(default=50, ge=1)
    """MONGO_MAX_POOL_SIZE: connections of a worker."""
    mongodb_timeout_ms: int = Field(default=30000, ge=1)
    """MONGO_TIMEOUT_MS: how long an operation may take."""
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

    # What it runs as

    def worker_count(self, here: Here) -> int:
        """Workers that gunicorn starts."""
        room = here.memory_share(self.role) // self.worker_memory
        return self.workers or max(1, min(2 * here.cores + 1, room))

    def binds(self, here: Here) -> list[str]:
        """Where gunicorn listens: the socket, and the address by which a proxy elsewhere asks it."""
        return [f"unix:{SOCKET}", *(f"{bracketed(address)}:{self.port}" for address in here.binds(self.port))]

    def mongodb_variables(self, here: Here, secret: uris.Secrets) -> dict[str, str]:
        found = super().mongodb_variables(here, secret)
        pool = {"MONGO_MAX_POOL_SIZE": str(self.mongodb_max_pool_size), "MONGO_TIMEOUT_MS": str(self.mongodb_timeout_ms)}
        return found | pool if found else {}

    def neighbours(self, here: Here, secret: uris.Secrets) -> dict[str, str]:
        found = super().neighbours(here, secret) | uris.chromadb(here) | uris.inference(here)
        if "DATABASE_URL" not in self.environment:
            found |= uris.postgresql(here, self.postgresql_user, self.postgresql_database, secret)
        if "DATABASE_URL" in {**found, **self.environment}:
            found["DB_POOL_SIZE"] = str(self.postgresql_pool_size)
            found["DB_MAX_OVERFLOW"] = str(self.postgresql_max_overflow)
        found |= {"AWS_S3_BUCKET": self.s3_bucket} if self.s3_bucket else {}
        found |= {"AWS_S3_REGION": self.s3_region} if self.s3_region else {}
        return found

    def files(self, here: Here) -> list[Row]:
        return [
            Directory(self.root, group="app", mode="750"),
            Directory(CONFIGURATION),
            *uris.mongodb_authority(here),
            File(
                f"{CONFIGURATION}/environment", template="program/environment.j2", mode="600", secret=True
            ),
            File(
                f"{CONFIGURATION}/gunicorn.conf.py",
                template="app/gunicorn.conf.py.j2",
                check=f"{self._ports_free(here)}{self.gunicorn_check()}",
            ),
            File("/etc/systemd/system/app.service", template="app/app.service.j2", keep=True),
        ]

    def _ports_free(self, here: Here) -> str:
        if len(self.binds(here)) == 1:
            return ""
        return f"{files.ports_free(UNIT, {self.port: 'app_port'}, here.binds(self.port))} || exit 1\n"

    def flows(self) -> list[Flow]:
        return [Flow("nginx", self.role, self.port)]

    def further_errors(self, here: Here) -> Iterable[str]:
        yield from super().further_errors(here)
        room = here.memory_share(self.role)
        if self.workers and self.workers * self.worker_memory > room:
            yield (
                f"app_workers = {self.workers} takes {self.workers * self.worker_memory} MiB (app_worker_memory "
                f"each), and the host has {room} for the application"
            )

    def services(self, here: Here) -> list[service.Service]:
        reads = (
            f"{self.root}/current",
            f"{self.root}/current/.venv",
            f"{CONFIGURATION}/environment",
            f"{CONFIGURATION}/gunicorn.conf.py",
            uris.AUTHORITY,
        )
        ports = {self.port: "app_port"} if len(self.binds(here)) > 1 else {}
        return [service.Service("app.service", reads=reads, ports=ports)]


@role(Settings, "Application")
def app(settings: Settings, here: Here) -> None:
    # install
    install(settings, here)
    accounts.users(name="User", users=[accounts.User("app", home="/var/lib/app", system=True)])

    # configure
    configured = files.table(name="Configuration", rows=settings.files(here), settings=settings)
    brought = settings.bring()

    # run
    service.services(
        name="Service",
        services=settings.services(here),
        after=[configured, *brought],
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
