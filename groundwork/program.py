"""What the roles have in common that run somebody's Python program: app, inference, training.

A program is a source with a lock. It lies on the host as releases and environments below /srv/<role>, and gets
its variables from the topology and from its settings.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Iterable, Literal

from pydantic import Field
from pyinfra.api.operation import OperationMeta

from groundwork import cuda, locks, uris
from groundwork.rows import File, Row
from groundwork.secrets import Secret
from groundwork.settings import HostSettings, Port, RoleSettings, key, matching
from groundwork.sources import SourceError, Tree, shown, tree
from groundwork.topology import Here
from operations import uv
from operations.release import release

Variable = Annotated[str, matching(r"[A-Za-z_][A-Za-z0-9_]*", "a name for an environment variable")]
UrlPath = Annotated[str, matching(r"/[A-Za-z0-9_./~-]*", "the path of a URL such as /health")]
ModelName = Annotated[str, matching(r"[a-z][a-z0-9-]{0,40}", "a name of lower-case letters, digits and -")]

MODELS = "/srv/models"
"""MODELS/<model>/<version>/, with the link MODELS/<model>/current: made by training, read by inference."""

# gunicorn's own --check-config starts the application, too. Its environment comes later than this file: what is
# there is that of the running release, and at the first run none.
_CHECK = """if [ -x {root}/current/.venv/bin/gunicorn ]; then python={root}/current/.venv/bin/python; else python=python3; fi
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


def has_card(here: Here) -> bool:
    """Whether programs on a host get its NVIDIA card."""
    return "gpu" in here.roles and here.settings(here.topology.roles["gpu"]).card


def card_rows(here: Here) -> list[Row]:
    """What a host needs for programs that use its card."""
    unit = "/etc/systemd/system/groundwork-cuda.service"
    return [File(unit, template="program/groundwork-cuda.service.j2")] if has_card(here) else []


class ProgramSettings(RoleSettings):
    """A program from a directory or git, in an environment of its own."""

    needed: ClassVar[tuple[str, ...]] = ()
    """Packages that its lock must have, to run it with."""

    source: str | None = None
    """What to deploy: a directory on the controller (absolute, or relative to the repository; of a git
    work tree, what is not ignored), or the URL of a git repository, which the controller reads."""
    revision: str = "HEAD"
    """Of a git repository: branch, tag, or all 40 digits of a commit."""
    requirements: str | None = None
    """The lock, a path in the source: a requirements file of pip or uv, or uv.lock beside its
    pyproject.toml. By default requirements.txt, or else uv.lock."""
    python: Annotated[str, matching(r"[A-Za-z0-9_./+-]+", "a program's name or path, such as python3.11")] | None = None
    """Interpreter on the host, a name or a path; by default the distribution's python3."""
    build: bool = False
    """Allow packages that come as source only; `packages` below then names what building them takes."""
    packages: list[Annotated[str, matching(r"[a-z0-9][a-z0-9+.-]+", "a package's name, such as libpq5")]] = []
    """Packages of the distribution that it needs besides, such as libpq5 or ffmpeg; names of real
    packages, not of virtual ones."""
    keep_releases: int = Field(default=5, ge=2)
    """Releases kept on a host, the current one among them."""
    environment: dict[Variable, str | int | bool | Secret] = {}
    """More variables of its environment, and other values for ours:
    {"SENTRY_DSN": Secret("app/sentry_dsn"), "ALLOWED_ORIGINS": "https://example.org"}."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    """LOG_LEVEL: DEBUG, INFO, WARNING, ERROR or CRITICAL."""
    redis_user: str = "app"
    """Redis user, with the secret redis/<user>."""
    redis_database: int = Field(default=0, ge=0)
    """REDIS_DB."""

    def installs(self, here: Here) -> dict[str, str | None]:
        return dict.fromkeys(["curl", *uv.PACKAGES, *self.packages])

    # What is deployed

    @property
    def root(self) -> str:
        """Where its releases and environments are."""
        return f"/srv/{self.role}"

    def tree(self) -> Tree:
        """The release: the source, with a link to its environment.

        Raises:
            SourceError: when the source can't be read or has no lock.
        """
        name = uv.name(self.lock(), self.python, self.torch_backend())
        return self._source().with_link(".venv", f"{self.root}/environments/{name}")

    def lock(self) -> str:
        """The text of the lock."""
        return locks.of_tree(self._source(), self.requirements, key(type(self), "requirements"))

    def cuda_build(self, here: Here) -> cuda.Build | None:
        try:
            return cuda.build_of(self.lock()) if self.source else None
        except SourceError:  # which errors() tells
            return None

    def torch_backend(self) -> str | None:
        """Which of PyTorch's own indexes its lock needs; None for none."""
        build = cuda.build_of(self.lock())
        return build.torch_backend if build else None

    def _source(self) -> Tree:
        return tree(self.source or "", self.revision)

    def python_environment(self) -> dict[str, Any]:
        return {
            "path": f"{self.root}/environments",
            "requirements": self.lock(),
            "python": self.python,
            "build": self.build,
            "link": False,
            "torch_backend": self.torch_backend(),
        }

    def bring(self) -> list[OperationMeta]:
        """The operations that bring environment and release to a host, and make them current."""
        environment = uv.environment(name="Environment", **self.python_environment())
        released = release(name="Release", tree=self.tree(), path=self.root, keep=self.keep_releases)
        return [environment, released]

    # Its variables

    def variables(self, here: Here, secret: uris.Secrets) -> dict[str, str]:
        """Its environment: what is in the inventory, and what the user adds or sets otherwise.

        Args:
            secret: gives a secret's value by its name.
        """
        found = {"ENVIRONMENT": here.settings(HostSettings).environment, "LOG_LEVEL": self.log_level}
        found |= self.neighbours(here, secret)
        return found | {
            name: secret(value.name) if isinstance(value, Secret) else _text(value)
            for name, value in self.environment.items()
        }

    def neighbours(self, here: Here, secret: uris.Secrets) -> dict[str, str]:
        """Variables that lead to what else is in the inventory."""
        return self.redis_variables(here, secret)

    def redis_variables(self, here: Here, secret: uris.Secrets) -> dict[str, str]:
        """Where Redis is, unless the user says it."""
        return {} if "REDIS_URL" in self.environment else uris.redis(here, self.redis_user, self.redis_database, secret)

    def secrets(self, here: Here) -> list[Secret]:
        wanted: list[str] = []
        self.variables(here, lambda name: wanted.append(name) or "")
        return [Secret(name) for name in wanted]

    # What is wrong

    def errors(self, here: Here) -> Iterable[str]:
        name = key(type(self), "source")
        if self.source is None:
            yield f"{name} is not set: it names the program to deploy"
            return
        where = f"{name} = {shown(self.source)!r}"
        try:
            locked = locks.names(self.lock())
        except SourceError as error:
            yield f"{where}: {error}"
            return
        if missing := [name for name in self.needed if name not in locked]:
            yield (
                f"{where}: its lock has no {' and no '.join(missing)}, to run it with: add to the requirements, "
                "and lock again"
            )
        yield from self.further_errors(here)

    def further_errors(self, here: Here) -> Iterable[str]:
        """What is wrong besides, where there is a program."""
        return []


class MongoDBSettings(ProgramSettings):
    """A program that reads and writes MongoDB."""

    mongodb_user: str | None = None
    """Which of mongodb_users the program is; by default the first. Of a MongoDB that is not
    ours: its user, with the secret mongodb/<user>."""
    mongodb_database: str | None = None
    """MONGO_DB, and where the user logs in; by default the user's database."""

    def mongodb_login(self, here: Here) -> tuple[str, str]:
        """User and database for MongoDB; empty where the settings do not tell."""
        users = here.settings_of("mongodb").present if here.peers("mongodb") else []
        named = [user for user in users if self.mongodb_user in (None, user.name)]
        user = self.mongodb_user or (named[0].name if named else "")
        return user, self.mongodb_database or (named[0].database if named else "")

    def mongodb_variables(self, here: Here, secret: uris.Secrets) -> dict[str, str]:
        """Where MongoDB is, unless the user says it."""
        if "MONGO_URI" in self.environment or not here.address("mongodb"):
            return {}
        return uris.mongodb(here, *self.mongodb_login(here), secret)

    def neighbours(self, here: Here, secret: uris.Secrets) -> dict[str, str]:
        return self.mongodb_variables(here, secret) | self.redis_variables(here, secret)

    def further_errors(self, here: Here) -> Iterable[str]:
        if "MONGO_URI" not in self.environment and here.address("mongodb"):
            yield from self._mongodb_errors(here)

    def _mongodb_errors(self, here: Here) -> Iterable[str]:
        user, database = (key(type(self), name) for name in ("mongodb_user", "mongodb_database"))
        names = [item.name for item in here.settings_of("mongodb").present] if here.peers("mongodb") else None
        if names is not None and self.mongodb_user and self.mongodb_user not in names:
            yield f"{user} = {self.mongodb_user!r} is none of mongodb_users ({', '.join(names)})"
        elif not all(self.mongodb_login(here)):
            yield f"{user} and {database} are not set, and there is no mongodb_users to take them from"


class ServerSettings(ProgramSettings):
    """An ASGI application under gunicorn."""

    needed = ("gunicorn", "uvicorn-worker")

    module: Annotated[str, matching(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*(\(\))?", "module:name, such as app.main:app")] = "app.main:app"
    """Where the ASGI application is: module:name."""
    timeout_seconds: int = Field(default=60, ge=1)
    """A worker that gives no sign of life for so long is killed."""
    graceful_seconds: int = Field(default=30, ge=1)
    """How long a worker may finish its requests when it is stopped."""
    port: Port
    health_path: UrlPath | None = "/health"
    """Answers 200 when a process serves; None for an application that has no such path."""
    start_seconds: int = Field(default=60, ge=1)
    """How long the application may take until it is healthy, and then ready."""

    def gunicorn_check(self) -> str:
        """Of gunicorn's configuration: each of its names takes its value."""
        return _CHECK.format(root=self.root)


def _text(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
