"""The 200 states as a role of ours declares them."""

from bench import states
from groundwork.preflight import preflight
from groundwork.rows import Directory, File, Link
from groundwork.templates import jinja
from operations import accounts, apt, files, service, sysctl
from operations.lock import lock
from pyinfra.operations.files import line

_states = states.read()
_bench = str(states.HERE / "templates")
if _bench not in jinja.loader.searchpath:
    jinja.loader.searchpath.append(_bench)


def _owned(row):
    return {"owner": row["owner"], "group": row["group"], "mode": row["mode"]}


def _rows():
    for row in _states["directories"]:
        yield Directory(row["path"], **_owned(row))
    for row in _states["files"]:
        yield File(row["path"], source=str(states.HERE / "files" / row["source"]), **_owned(row))
    for row in _states["templates"]:
        yield File(row["path"], template=row["template"], variables={"site": row["site"], "site_port": row["site_port"]}, **_owned(row))
    for row in _states["dropins"]:
        yield File(row["path"], content=row["content"], **_owned(row))
    for row in _states["links"]:
        yield Link(row["path"], target=row["target"])


preflight()
lock()

apt.packages(name="Packages", present=_states["packages"])
accounts.users(
    name="Users",
    users=[accounts.User(user["name"], home=user["home"], system=True, groups=tuple(user["groups"])) for user in _states["users"]],
)
sysctl.settings(name="Kernel", role="web", values=_states["sysctls"])
configured = files.table(name="Files", rows=_rows(), settings=None)
lines = [line(name=f"Line {row['line']}", path=row["path"], line=row["match"], replace=row["line"]) for row in _states["lines"]]
service.services(
    name="Services",
    services=[service.Service(row["unit"], reads=tuple(row["reads"]), reload=row["reload"]) for row in _states["services"]],
    after=[configured, *lines],
)
