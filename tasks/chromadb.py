"""ChromaDB: a vector database server in its own environment, reached by those who have a flow."""

from __future__ import annotations

from typing import Any, Iterable

from groundwork.roles import role
from groundwork.rows import Directory, File, Row
from groundwork.settings import Port, RoleSettings
from groundwork import ROOT
from groundwork.topology import Flow, Here, Opening
from operations import accounts, files, service, uv, wait
from tasks.packages import install

VERSION = "1.5.9"
"""Of files/chromadb/requirements.txt, the lock that is installed; clients are of the same release."""

LOCK = ROOT / "files/chromadb/requirements.txt"
ENVIRONMENTS = "/opt/chromadb/environments"
DATA = "/var/lib/chromadb"
CONFIGURATION = "/etc/chromadb/chroma.yaml"
UNIT = "chromadb.service"

# It has no checker of its own. One is started on a port that it may not have as its user, with no data: that
# is the last thing it can complain of.
CHECK = f"""d=$(mktemp -d); sed "s|^persist_path:.*|persist_path: $d|; s|^port:.*|port: 1|" {{}} >$d/chroma.yaml; chown -R chromadb: $d
said=$(cd $d && HOME=$d timeout 60 setpriv --reuid=chromadb --regid=chromadb --init-groups \\
  {ENVIRONMENTS}/current/bin/chroma run chroma.yaml 2>&1); rm -rf $d
case $said in *PermissionDenied*) ;; *) echo "$said" | tail -n 1; false ;; esac"""


class Settings(RoleSettings):
    """ChromaDB."""

    role = "chromadb"
    mark = CONFIGURATION
    units = ("chromadb.service",)
    memory_weight = 2
    memory_minimum = 192  # 115 MiB were resident when it had started, with nothing stored

    port: Port = 8000
    """TCP port."""

    def _opening(self, here: Here) -> Opening | None:
        """What the firewall opens for other hosts."""
        return next((opening for opening in here.openings() if opening.port == self.port), None)

    def listens_on(self, here: Here) -> str:
        """The one address that ChromaDB can listen on.

        Loopback; the address by which other hosts have a flow; every address if they come by several, or if
        clients are on this host, too: then firewall and unit limit who reaches it.
        """
        opening = self._opening(here)
        if opening is None:
            return "127.0.0.1"
        first, *more = opening.addresses
        if more or any(source in here.roles for source in opening.sources):
            return "::" if any(":" in address for address in opening.addresses) else "0.0.0.0"
        return first

    def networks(self, here: Here) -> list[str]:
        """Networks that may exchange packets with the unit, besides loopback."""
        opening = self._opening(here)
        # The host asks itself from its own address where ChromaDB listens on that.
        return [*opening.addresses, *opening.networks(4), *opening.networks(6)] if opening else []

    def url(self, here: Here) -> str:
        """Where the host itself finds the server."""
        address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.listens_on(here), self.listens_on(here))
        return f"http://[{address}]:{self.port}" if ":" in address else f"http://{address}:{self.port}"

    def flows(self) -> list[Flow]:
        return [Flow("app", self.role, self.port, nearest=True)]

    def errors(self, here: Here) -> Iterable[str]:
        opening = self._opening(here)
        if opening and opening.everybody:
            yield (
                'flows: "internet" to chromadb is refused, because ChromaDB asks nobody for a password: '
                "name the networks of its clients"
            )

    def installs(self, here: Here) -> dict[str, str | None]:
        return dict.fromkeys(["curl", *uv.PACKAGES])

    def python_environment(self) -> dict[str, Any]:
        return {"path": ENVIRONMENTS, "requirements": LOCK}

    def files(self, here: Here) -> list[Row]:
        address = self.listens_on(here)
        port_free = files.ports_free(
            UNIT, {self.port: "chromadb_port"}, () if address in ("0.0.0.0", "::") else (address,)
        )
        paths = {"environments": ENVIRONMENTS, "data": DATA, "configuration": CONFIGURATION}
        return [
            Directory("/etc/chromadb"),
            File(
                CONFIGURATION,
                template="chromadb/chroma.yaml.j2",
                variables=paths,
                check=f"{port_free} && {{ {CHECK}; }}",
            ),
            File(f"/etc/systemd/system/{UNIT}", template="chromadb/chromadb.service.j2", variables=paths),
        ]

    def services(self, here: Here) -> list[service.Service]:
        reads = (CONFIGURATION, f"{ENVIRONMENTS}/current")
        return [service.Service(UNIT, reads=reads, ports={self.port: "chromadb_port"})]


@role(Settings, "ChromaDB")
def chromadb(settings: Settings, here: Here) -> None:
    """An environment from the lock, a user, a unit; then wait for the heartbeat."""
    install(settings, here)
    uv.environment(name="Environment", **settings.python_environment())

    accounts.users(name="User", users=[accounts.User("chromadb", home=DATA, system=True)])
    configured = files.table(name="Configuration", rows=settings.files(here), settings=settings)

    service.services(
        name="Service",
        services=settings.services(here),
        after=[configured],
    )
    wait.http(name="Heartbeat", url=f"{settings.url(here)}/api/v2/heartbeat", unit=UNIT, seconds=120)
