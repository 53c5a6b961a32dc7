"""What is on a host already, before a role comes to it."""

from __future__ import annotations

import re
from typing import Iterable

from pyinfra.api import FactBase

from groundwork.takeover import Found as FoundData
from groundwork.takeover import Listener

_PACKAGES = "docker.io docker-ce mongodb-org-server redis-server redis nginx"

# Values are fetched only of words that hold no secret.
_MONGOD = "dbPath|port|bindIp|authorization|keyFile|replSetName|clusterRole|directoryPerDB|directoryForIndexes|enableEncryption|mode"
_REDIS = "dir|port|databases|appendfilename|appenddirname|aclfile|replicaof|slaveof|cluster-enabled|rename-command|include|loadmodule"
_REDIS_INFO = "redis_version|used_memory|role|connected_slaves|cluster_enabled|maxmemory_policy|aof_enabled|db[0-9]+"

_HOST = f"""
ss -Hltunp | sed 's/^/S|/'
for p in $(ss -Hltunp | grep -o 'pid=[0-9]*' | cut -d= -f2 | sort -u); do echo "U|$p|$(ps -o unit= -p $p)"; done
dpkg-query -W -f='P|${{Package}}|${{db:Status-Status}}\\n' {_PACKAGES} 2>/dev/null
"""

_VENDORS = {"mongodb": "mongodb-org", "docker": "download.docker.com"}
"""Role -> what stands in a source of its vendor, in the suite or in the URI, and in no other."""


def _sources(role: str, ours: str) -> str:
    """Lines of apt's files that have a vendor's name; without the password that a URI may have."""
    return f"""for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
  [ "$f" != /etc/apt/sources.list.d/{ours} ] && grep -qsF {_VENDORS[role]} "$f" &&
    sed -E 's#://[^/@[:space:]]*@#://#g' "$f" | awk -v f="Q|{role}|$f|" '!/^[[:space:]]*#/ {{ print f NR "|" $0 }}'
done
"""


_BASE = """
if grep -qs '^ENABLED=yes' /etc/ufw/ufw.conf && LC_ALL=C ufw status 2>/dev/null | grep -q '^Status: active'; then
  echo 'W|'; ufw show added 2>/dev/null | sed -n 's/^ufw /W|ufw /p'
fi
systemctl is-active --quiet firewalld && echo 'F|'
grep -qs 'Managed by Groundwork' /etc/groundwork/firewall.nft && echo 'G|'
if nft -v >/dev/null 2>&1; then nft -t list ruleset 2>/dev/null | sed 's/^/N|/'
elif iptables -V >/dev/null 2>&1; then iptables-save 2>/dev/null | sed 's/^/I|/'; fi
for u in nftables netfilter-persistent iptables; do systemctl is-enabled --quiet $u 2>/dev/null && echo "B|$u.service"; done
sshd -T 2>/dev/null | grep -q '^passwordauthentication yes' && awk -F: '$2 ~ /^\\$/ {print $1}' /etc/shadow | while read u; do
  h=$(getent passwd "$u" | cut -d: -f6); s=$(getent passwd "$u" | cut -d: -f7)
  case $s in */nologin|*/false) ;; *) [ -s "$h/.ssh/authorized_keys" ] || echo "A|$u" ;; esac
done
"""

_NGINX = """
if grep -qs 'Managed by Groundwork' /etc/nginx/nginx.conf; then echo 'XG|'; else
for f in /etc/nginx/sites-enabled/* /etc/nginx/conf.d/*.conf; do
  [ -e "$f" ] && [ "$(readlink -f "$f")" != /etc/nginx/sites-available/default ] && echo "X|$f"; done
[ -e /etc/nginx ] && dpkg -V nginx-common nginx 2>/dev/null |
  sed -n 's#^..5.* c \\(/etc/nginx/\\(nginx.conf\\|sites-available/default\\)\\)$#X|\\1#p'
fi
"""

_MONGODB = f"""
mongod --version 2>/dev/null | sed -n 's/^db version v/MV|/p'
sed -nE 's/^[[:space:]]*({_MONGOD}):[[:space:]]*/MO|\\1|/p' /etc/mongod.conf 2>/dev/null
for p in $(pgrep -x mongod); do echo "MA|$(tr '\\0' ' ' </proc/$p/cmdline)"; done
for d in /var/lib/mongodb $(sed -nE 's/^[[:space:]]*dbPath:[[:space:]]*//p' /etc/mongod.conf 2>/dev/null | tr -d '"'); do
  [ -e "$d/WiredTiger" ] && echo "MD|$d"; done
grep -qs 'Managed by Groundwork' /etc/mongod.conf && echo 'MG|'
{_sources("mongodb", "mongodb-org.sources")}"""

_REDIS_SCRIPT = f"""
c=/etc/redis/redis.conf
if [ -e $c ]; then
  sed -nE 's/^({_REDIS})[[:space:]]+/RO|\\1|/p' $c
  grep -q 'Managed by Groundwork' $c && echo 'RG|'
  p=$(sed -n 's/^port  *//p' $c | tail -n 1)
  {{ sed -n 's/^requirepass  */AUTH /p' $c | tail -n 1; echo INFO; }} | timeout 10 redis-cli -p ${{p:-6379}} 2>/dev/null |
    tr -d '\\r' | sed -nE 's/^({_REDIS_INFO}):/RI|\\1|/p'
  d=$(sed -n 's/^dir  *//p' $c | tail -n 1); find ${{d:-/var/lib/redis}} -maxdepth 2 -size +0 \\( -name '*.rdb' -o -name '*.aof*' \\) 2>/dev/null | sed 's/^/RF|/'
fi
"""

_DOCKER = """
if [ -S /run/docker.sock ]; then
  LC_ALL=C docker info -f 'DI|{{.DockerRootDir}}|{{.Swarm.LocalNodeState}}|{{.LiveRestoreEnabled}}' 2>/dev/null
  i=$(docker ps -q); [ -z "$i" ] || docker inspect -f 'DC|{{.Name}}|{{.HostConfig.RestartPolicy.Name}}|{{range $p, $b := .NetworkSettings.Ports}}{{range $b}}{{.HostIp}}:{{.HostPort}} {{end}}{{end}}' $i
fi
grep -ohs '"[a-z0-9-]*"[[:space:]]*:' /etc/docker/daemon.json | sed 's/^"\\([^"]*\\)".*/DK|\\1/'
getent group docker | cut -d: -f4 | tr , '\\n' | sed -n 's/^./DU|&/p'
""" + _sources("docker", "docker.sources")

_GPU = """
dpkg-query -W -f='P|${Package}|${db:Status-Status}\\n' 'nvidia-driver*' 'nvidia-headless*' 'nvidia-*dkms*' 2>/dev/null
[ -x /usr/bin/nvidia-uninstall ] && echo 'GR|'
"""

_SECTIONS = {"base": _BASE, "gpu": _GPU, "nginx": _NGINX, "mongodb": _MONGODB, "redis": _REDIS_SCRIPT, "docker": _DOCKER}

_KNOWN_TABLE = re.compile(r"inet (groundwork|f2b-table)$|ip6? (nat|f2b-.*)$|bridge .*$")
"""Ours, fail2ban's, and those that only translate."""
_DOCKERS = re.compile(r"DOCKER|docker|LIBVIRT|br-[0-9a-f]{12}")


class Found(FactBase):
    """What is there that roles would meet: a `groundwork.takeover.Found`.

    Args of the command:
        roles: roles that are new to the host.
    """

    default = FoundData

    def command(self, roles: Iterable[str]) -> str:
        return _HOST + "".join(_SECTIONS.get(role, "") for role in roles) + "true"

    def process(self, output):
        return read(output)


def read(output: Iterable[str]) -> FoundData:
    """What the script's lines say."""
    found = FoundData()
    units: dict[str, str] = {}
    rules: list[str] = []
    sockets: list[str] = []
    sources: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for line in output:
        tag, _, rest = line.partition("|")
        if tag == "S":
            sockets.append(rest)
        elif tag == "U":
            pid, _, unit = rest.partition("|")
            units[pid] = unit.strip(" -")
        elif tag == "P" and rest.endswith("|installed"):
            found.packages.add(rest.partition("|")[0])
        elif tag == "GR":
            found.nvidia_program = True
        elif tag == "W":
            found.ufw = [*(found.ufw or []), *([rest] if rest else [])]
        elif tag == "F":
            found.firewalld = True
        elif tag in ("N", "I"):
            rules.append(rest)
        elif tag == "B":
            found.rules_at_boot.append(rest)
        elif tag == "A":
            found.passwords.append(rest)
        elif tag == "G":
            found.firewall_written = True
        elif tag == "Q":
            role, path, number, text = rest.split("|", 3)
            sources.setdefault((role, path), []).append((int(number), text))
        elif tag == "X":
            found.sites.append(rest)
        elif tag == "XG":
            found.nginx_ours = True
        elif tag[:1] == "M":
            _mongodb(found, tag, rest)
        elif tag[:1] == "R":
            _redis(found, tag, rest)
        elif tag[:1] == "D":
            _docker(found, tag, rest)
    found.listeners = [item for line in sockets for item in _listeners(line, units)]
    for (role, path), lines in sources.items():
        _vendor(found, role, path, lines)
    # ufw's rules are in these tables, and ufw is told of as itself.
    ufws = {"ip filter", "ip6 filter", "iptables filter"} if found.ufw is not None else set()
    found.tables = [name for name in _tables(rules) if name not in ufws]
    found.firewall_loaded = any(line.startswith("table inet groundwork") for line in rules)
    return found


def _listeners(line: str, units: dict[str, str]) -> Iterable[Listener]:
    """One line of `ss -Hltunp`."""
    words = line.split()
    address, _, port = words[4].rpartition(":")
    address = {"*": "0.0.0.0"}.get(address, address).replace("[", "").replace("]", "")
    holders = re.findall(r'\("([^"]*)",pid=(\d+)', line)
    program, pid = holders[0] if holders else ("", "")
    if port.isdigit():
        yield Listener(words[0], address, int(port), program, units.get(pid, ""))


def _vendor(found: FoundData, role: str, path: str, lines: list[tuple[int, str]]) -> None:
    """One of apt's files: put aside where it has a vendor's repositories only, told where it has others, too."""
    entries = list(_stanzas(lines) if path.endswith(".sources") else _one_lines(lines))
    named = [[_VENDORS[role] in place for place in places] for _, _, places in entries]
    if named and all(map(all, named)):
        found.sources.setdefault(role, []).append(path)
        return
    for (number, text, _), names in zip(entries, named):
        if any(names):
            found.shared_sources.setdefault(role, []).append(f"{path}, line {number}: {text}")


def _one_lines(lines: list[tuple[int, str]]) -> Iterable[tuple[int, str, list[str]]]:
    """Line, text, and places (URI and suite) of the entries of a file in the one-line style (sources.list(5))."""
    for number, line in lines:
        text = line.split("#")[0].strip()
        words = re.sub(r"^(deb|deb-src)\s+\[[^]]*\]", r"\1", text).split()
        if words[:1] in (["deb"], ["deb-src"]):
            yield number, text, [" ".join(words[1:3])]


def _stanzas(lines: list[tuple[int, str]]) -> Iterable[tuple[int, str, list[str]]]:
    """The same of a file in the deb822 style: each URI with each suite, in stanzas that are not switched off."""
    fields: dict[str, str] = {}
    first, name = 0, ""
    for number, line in [*lines, (0, "")]:
        if line.strip():
            first = first if fields else number
            if not line[0].isspace():
                name, _, line = line.partition(":")
                name = name.strip().lower()
            fields[name] = f"{fields.get(name, '')} {line.strip()}".strip()
        elif fields:
            uris, suites = fields.get("uris", "").split(), fields.get("suites", "").split()
            if fields.get("enabled", "yes").lower() not in ("no", "false", "without", "off", "disable", "0"):
                yield first, f"URIs: {' '.join(uris)}, Suites: {' '.join(suites)}", [f"{uri} {suite}" for uri in uris for suite in suites]
            fields = {}


def _tables(rules: list[str]) -> list[str]:
    """Tables with a chain on the way in, or through, that keeps something out."""
    found: dict[str, None] = {}
    table, keeps_out = "", False
    for line in rules:
        text = line.strip()
        if text.startswith("table "):
            table = text.removeprefix("table ").rstrip(" {")
        elif text.startswith("*"):  # iptables-save
            table = f"iptables {text[1:]}"
        elif text.startswith("type "):
            keeps_out = "hook input" in text
            if keeps_out and "policy drop" in text:
                found[table] = None
        elif re.match(r":INPUT DROP", text) or text.startswith("-A INPUT") and re.search(r"-j (DROP|REJECT)", text):
            found[table] = None
        elif keeps_out and re.search(r"\b(drop|reject)\b", text) and not _DOCKERS.search(text):
            found[table] = None
        elif text == "}":
            keeps_out = False
    return [name for name in found if not _KNOWN_TABLE.match(name)]


def _mongodb(found: FoundData, tag: str, rest: str) -> None:
    if tag == "MV":
        found.mongodb.version = rest.strip()
    elif tag == "MO":
        name, _, value = rest.partition("|")
        value = value.split(" #")[0].strip().strip("\"'")
        # Other things have a mode, too (operationProfiling).
        if name != "mode" or value.endswith(("TLS", "SSL")):
            found.mongodb.options[name] = value
    elif tag == "MG":
        found.mongodb.ours = True
    elif tag == "MD":
        found.mongodb.data.add(rest)
    elif tag == "MA":
        words = rest.replace("=", " ").split()
        for option, name in (("--dbpath", "dbPath"), ("--port", "port"), ("--replSet", "replSetName"), ("--keyFile", "keyFile")):
            if option in words:
                found.mongodb.options[name] = words[words.index(option) + 1]
        if "--auth" in words:
            found.mongodb.options["authorization"] = "enabled"


def _redis(found: FoundData, tag: str, rest: str) -> None:
    if tag == "RF":
        found.redis.files.append(rest)
        return
    if tag == "RG":
        found.redis.ours = True
        return
    name, _, value = rest.partition("|")
    (found.redis.options if tag == "RO" else found.redis.info)[name] = value.strip().strip('"')


def _docker(found: FoundData, tag: str, rest: str) -> None:
    docker = found.docker
    if tag == "DI":
        docker.root, swarm, live = rest.split("|")
        docker.swarm, docker.live_restore = swarm not in ("inactive", ""), live == "true"
    elif tag == "DC":
        name, policy, ports = rest.split("|")
        docker.containers[name.lstrip("/")] = (policy or "no", ports.strip())
    elif tag == "DK":
        docker.keys.add(rest)
    elif tag == "DU":
        docker.users.add(rest)
