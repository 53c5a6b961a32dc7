"""The 200 states in pyinfra's own operations, as its documentation writes them."""

from io import StringIO
from pathlib import Path

import yaml

from pyinfra.operations import apt, files, server, systemd
from pyinfra.operations.util import any_changed

_bench = Path(__file__).resolve().parent.parent
_states = yaml.safe_load((_bench / "states.yml").read_text())


def _owned(row):
    return {"user": row["owner"], "group": row["group"], "mode": row["mode"]}


apt.packages(name="Packages", packages=_states["packages"], no_recommends=True, update=True, cache_time=86400)

for group in _states["system_groups"]:
    server.group(name=f"Group {group}", group=group, system=True)
for user in _states["users"]:
    server.user(
        name=f"User {user['name']}", user=user["name"], home=user["home"], shell="/usr/sbin/nologin", system=True,
        groups=user["groups"], append=True, ensure_home=False,
    )  # fmt: skip

for row in _states["directories"]:
    files.directory(name=f"Directory {row['path']}", path=row["path"], **_owned(row))

# Unit -> what was done to the files that it reads.
changed = {row["unit"]: [] for row in _states["services"]}
units = []


def _note(path, done):
    for row in _states["services"]:
        if any(path == read or path.startswith(f"{read}/") for read in row["reads"]):
            changed[row["unit"]].append(done)
        if path == f"/etc/systemd/system/{row['unit']}" or path.startswith(f"/etc/systemd/system/{row['unit']}.d/"):
            changed[row["unit"]].append(done)
            units.append(done)


for row in _states["files"]:
    _note(row["path"], files.put(name=f"File {row['path']}", src=str(_bench / "files" / row["source"]), dest=row["path"], **_owned(row)))
for row in _states["templates"]:
    done = files.template(
        name=f"Template {row['path']}", src=str(_bench / "templates" / row["template"]), dest=row["path"], **_owned(row),
        site=row["site"], site_port=row["site_port"],
    )  # fmt: skip
    _note(row["path"], done)
for row in _states["dropins"]:
    _note(row["path"], files.put(name=f"Drop-in {row['path']}", src=StringIO(row["content"]), dest=row["path"], **_owned(row)))
for row in _states["lines"]:
    _note(row["path"], files.line(name=f"Line {row['line']}", path=row["path"], line=row["match"], replace=row["line"]))
for row in _states["links"]:
    _note(row["path"], files.link(name=f"Link {row['path']}", path=row["path"], target=row["target"]))

for key, value in _states["sysctls"].items():
    server.sysctl(name=f"Kernel {key}", key=key, value=value, persist=True, persist_file="/etc/sysctl.d/60-groundwork-web.conf")

systemd.daemon_reload(name="Units", _if=any_changed(*units))
for row in _states["services"]:
    systemd.service(name=f"Service {row['unit']}", service=row["unit"], running=True, enabled=True)
    again = {"reloaded": True} if row["reload"] else {"restarted": True}
    if changed[row["unit"]]:
        systemd.service(name=f"Restart {row['unit']}", service=row["unit"], **again, _if=any_changed(*changed[row["unit"]]))
