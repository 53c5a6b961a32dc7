"""Whether a host is as bench/states.yml says: asked of the host itself, with none of the tools that are compared."""

from __future__ import annotations

import hashlib
import json
import shlex
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bench import states
from lab import hosts
from lab.shell import run

# Runs on the host, with its Python, as root. It gives what is there, in the form of `expected`.
_ASK = r"""
import grp, hashlib, json, os, pwd, re, stat, subprocess, sys
wanted = json.load(sys.stdin)
def run(*words):
    return subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True).stdout
def owned(path):
    s = os.lstat(path)
    return [pwd.getpwuid(s.st_uid).pw_name, grp.getgrgid(s.st_gid).gr_name, "%o" % stat.S_IMODE(s.st_mode)]
def look(kind, name):
    if kind == "files":
        return [hashlib.sha256(open(name, "rb").read()).hexdigest(), *owned(name)]
    if kind == "directories":
        return [os.path.isdir(name), *owned(name)]
    if kind == "links":
        return os.readlink(name)
    if kind == "lines":
        path, line, match = name.split("\t")
        lines = open(path).read().splitlines()
        return [line in lines, sum(bool(re.match(match, other)) for other in lines)]
    if kind == "packages":
        return run("dpkg-query", "-W", "-f", "${db:Status-Status}", name)
    if kind == "groups":
        return bool(grp.getgrnam(name))
    if kind == "users":
        user = pwd.getpwnam(name)
        more = sorted(group.gr_name for group in grp.getgrall() if name in group.gr_mem)
        return [user.pw_dir, user.pw_shell, grp.getgrgid(user.pw_gid).gr_name, more]
    if kind == "sysctls":
        stored = open("/etc/sysctl.d/60-groundwork-web.conf").read().splitlines()
        live = open("/proc/sys/" + name.replace(".", "/")).read().strip()
        return [live, "%s = %s" % (name, live) in stored]
    if kind == "services":
        return run("systemctl", "is-enabled", name).split() + run("systemctl", "is-active", name).split()
found = {}
for kind, names in wanted.items():
    found[kind] = {}
    for name in names:
        try:
            found[kind][name] = look(kind, name)
        except (OSError, KeyError) as error:
            found[kind][name] = "%s: %s" % (type(error).__name__, error)
print(json.dumps(found))
"""


def expected() -> dict[str, dict[str, Any]]:
    """Kind -> name -> what a host shall say of it; 200 in all."""
    wanted = states.read()
    jinja = Environment(loader=FileSystemLoader(states.HERE / "templates"), undefined=StrictUndefined, keep_trailing_newline=True)

    def file(row: dict[str, Any], content: bytes) -> list[str]:
        return [hashlib.sha256(content).hexdigest(), *_owned(row)]

    files = {row["path"]: file(row, (states.HERE / "files" / row["source"]).read_bytes()) for row in wanted["files"]}
    files |= {row["path"]: file(row, row["content"].encode()) for row in wanted["dropins"]}
    files |= {row["path"]: file(row, jinja.get_template(row["template"]).render(row).encode()) for row in wanted["templates"]}
    return {
        "files": files,
        "directories": {row["path"]: [True, *_owned(row)] for row in wanted["directories"]},
        "links": {row["path"]: row["target"] for row in wanted["links"]},
        "lines": {f"{row['path']}\t{row['line']}\t{row['match']}": [True, 1] for row in wanted["lines"]},
        "packages": {name: "installed" for name in wanted["packages"]},
        "groups": {name: True for name in wanted["system_groups"]},
        "users": {row["name"]: [row["home"], "/usr/sbin/nologin", row["name"], sorted(row["groups"])] for row in wanted["users"]},
        "sysctls": {key: [str(value), True] for key, value in wanted["sysctls"].items()},
        "services": {row["unit"]: ["enabled", "active"] for row in wanted["services"]},
    }


def _owned(row: dict[str, Any]) -> list[str]:
    return [row["owner"], row["group"], row["mode"]]


def differences(name: str) -> list[str]:
    """What a lab host has otherwise than it shall, a sentence each.

    Raises:
        lab.settings.LabError: where it can't be asked.
    """
    wanted = expected()
    command = hosts.ssh_command(hosts.known()[name], f"sudo python3 -c {shlex.quote(_ASK)}")
    found = json.loads(run(*command, input=json.dumps({kind: list(names) for kind, names in wanted.items()}), timeout=60))
    return [
        f"{name}: {kind}: {what}: is {found[kind][what]}, and shall be {value}"
        for kind, names in wanted.items()
        for what, value in names.items()
        if found[kind][what] != value
    ]
