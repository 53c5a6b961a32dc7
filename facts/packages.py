"""Packages, and the state of apt and dpkg."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import Iterable

from pyinfra.api import FactBase

GUARD = "/usr/sbin/policy-rc.d"
"""invoke-rc.d asks it whether a service may start (Debian policy 9.3.3.1)."""

UPGRADED = "/var/lib/groundwork/upgraded"
"""Exists once all packages were upgraded, at the first run."""

_OLD = r" r-xp .* /(usr|lib|lib64|bin|sbin|opt|srv|var/lib)/.* \(deleted\)$"
RUNNING_OLD = rf"""upgraded=$(stat -c %Y {UPGRADED} 2>/dev/null || echo 0)
for pid in $(grep -lsE '{_OLD}' /proc/[0-9]*/maps | cut -d/ -f3); do
  unit=$(grep -soE '/system\.slice/.*\.service' "/proc/$pid/cgroup" | sed 's|.*/||')
  age=$(ps -o etimes= -p "$pid") && [ -n "$unit" ] || continue
  case $unit in dbus.* | dbus-broker.* | systemd-* | getty@* | serial-getty@*) after=reboot ;; *) after=restart ;; esac
  [ $(($(date +%s) - age)) -gt "$upgraded" ] || after=reboot
  echo "$after $unit"
done | sort -u"""
"""Lists services whose program or library was replaced under them (it is "deleted" for them), one `WORD UNIT` a line.

The word is "reboot" for those that are not restarted under a system at work (needrestart leaves them, too), and for
all that are older than the first run's upgrade; else "restart". What a just-in-time compiler writes (memfd, shared
memory, /tmp) is no file of a package.
"""


@dataclass
class AptState:
    """What is known of a host's packages."""

    versions: dict[str, str] = field(default_factory=dict)
    """Installed version of each package that was asked for and is installed whole: see Installed."""
    held: set[str] = field(default_factory=set)
    broken: bool = False
    """dpkg was interrupted."""
    lists_age: int | None = None
    """Seconds since the last `apt-get update` that worked, None for never."""
    sources_newer: bool = False
    """A source or key file is newer than the lists."""
    upgraded: bool = False
    """The upgrade of the first run is done."""
    guard_left: bool = False
    """A run that died left our policy-rc.d behind."""


class Apt(FactBase):
    """Holds, and what apt needs before it can work: the same question for every role.

    dpkg has the holds; `apt-mark showhold` reads apt's whole cache for the same answer. And it has what is half done, which
    `dpkg --audit` tells with what no repair mends: a package of somebody's that has no list of checksums.
    """

    default = AptState
    requires_command = None

    def command(self) -> str:
        return (
            "dpkg-query -W -f='${db:Status-Want}|${db:Status-Eflag}|${db:Status-Status}|${Package}\\n' 2>/dev/null | awk -F'|' '"
            '$1 == "hold" {print "H|" $4} $2 != "ok" || $3 !~ /^(installed|config-files|not-installed)$/ {broken = 1} '
            "END {if (broken) print \"B\"}'; "
            "lists=/var/lib/groundwork/apt-updated; "
            '[ -e $lists ] && echo "A|$(($(date +%s) - $(stat -c %Y $lists)))"; '
            '[ -e $lists ] && [ -n "$(find /etc/apt/sources.list /etc/apt/sources.list.d '
            '/etc/apt/keyrings /etc/apt/preferences.d -newercm $lists -print -quit 2>/dev/null)" ] && echo N; '
            f"grep -qs groundwork {GUARD} && echo G; [ -e {UPGRADED} ] && echo P; true"
        )

    def process(self, output):
        found = AptState()
        for line in output:
            tag, _, rest = line.partition("|")
            if tag == "H":
                found.held.add(rest)
            elif tag == "B":
                found.broken = True
            elif tag == "A":
                found.lists_age = int(rest)
            elif tag == "N":
                found.sources_newer = True
            elif tag == "P":
                found.upgraded = True
            elif tag == "G":
                found.guard_left = True
        return found


class Installed(FactBase):
    """Versions of those of the packages named that are installed whole: {package: version}."""

    default = dict
    requires_command = None

    def command(self, packages: Iterable[str]) -> str:
        names = " ".join(shlex.quote(name) for name in packages)
        return f"dpkg-query -W -f='${{db:Status-Status}}|${{Package}}|${{Version}}\\n' {names} 2>/dev/null; true"

    def process(self, output):
        found = (line.split("|") for line in output)
        return {name: version for status, name, version in found if status == "installed"}


@dataclass(frozen=True)
class Source:
    """One entry of apt's sources: sources.list(5)."""

    path: str
    uris: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""
    """As it is written: apt refuses one repository with two different values."""


class Sources(FactBase):
    """apt's sources of packages, in either form: [Source]. Those that are switched off don't count."""

    default = list
    requires_command = None

    def command(self) -> str:
        return (
            "for f in /etc/apt/sources.list /etc/apt/sources.list.d/*; do "
            'case $f in *.list|*.sources) [ -e "$f" ] && echo "F|$f" && sed "s/^/L|/" "$f" ;; esac; done; true'
        )

    def process(self, output):
        texts: dict[str, list[str]] = {}
        path = ""
        for line in output:
            tag, _, rest = line.partition("|")
            if tag == "F":
                path, texts[rest] = rest, []
            elif not rest.startswith("#"):
                texts[path].append(rest)
        found: list[Source] = []
        for path, lines in texts.items():
            found += _stanzas(path, lines) if path.endswith(".sources") else _one_lines(path, lines)
        return found


def _one_lines(path: str, lines: list[str]) -> list[Source]:
    found = (re.match(r"deb\s+(?:\[(.*?)\]\s+)?(\S+)\s+(\S+)\s*([^#]*)", line) for line in lines)
    return [
        Source(path, uri, (suite,), tuple(components.split()), _option(options or ""))
        for options, uri, suite, components in (match.groups() for match in found if match)
    ]


def _option(options: str) -> str:
    return next((word.partition("=")[2] for word in options.split() if word.startswith("signed-by=")), "")


def _stanzas(path: str, lines: list[str]) -> list[Source]:
    found = []
    for stanza in "\n".join(lines).split("\n\n"):
        fields = {name.lower(): value.strip() for name, value in re.findall(r"^([A-Za-z-]+):((?:.*\n?)(?:^[ \t].*\n?)*)", stanza, re.M)}
        if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes").lower() != "no":
            suites, components = (tuple(fields.get(name, "").split()) for name in ("suites", "components"))
            found.append(Source(path, fields.get("uris", ""), suites, components, fields.get("signed-by", "")))
    return found
