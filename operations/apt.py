"""Packages: one transaction for what is missing, no service started before it is configured."""

from __future__ import annotations

import shlex
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Iterable, Mapping

from pyinfra import host, state
from pyinfra.api import FunctionCommand, StringCommand, operation

from facts.packages import GUARD, RUNNING_OLD, UPGRADED, Apt, AptState, Installed
from operations.report import remind, report

LISTS_FRESH = 6 * 3600
"""Seconds for which the package lists count as fresh; a mirror changes a few times a day."""

UPDATE_SECONDS = 600
"""After which apt-get update is ended: apt 2.6 waits for ever where a mirror's 502 and its own retry meet (seen)."""

LOCK_WAIT = 600
"""Seconds to wait for another apt: unattended-upgrades at first boot can take minutes."""

# dpkg and apt lock with fcntl, which flock(1) does not see and apt-get's own DPkg::Lock::Timeout
# covers only for dpkg's lock; perl-base is essential on Debian and Ubuntu. struct flock: type,
# whence, start, len, pid.
WAIT_FOR_LOCKS = f"""perl -MFcntl -e '
my $end = time + {LOCK_WAIT}; my $said = 0;
for my $path ("/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock", "/var/lib/apt/lists/lock", "/var/cache/apt/archives/lock") {{
  while (1) {{
    open(my $file, "+>>", $path) or last;
    my $lock = pack("s s x4 q q i x4", F_WRLCK, 0, 0, 0, 0);
    fcntl($file, F_GETLK, $lock) or last;
    my ($type, undef, undef, undef, $pid) = unpack("s s x4 q q i x4", $lock);
    last if $type == F_UNLCK;
    open(my $name, "<", "/proc/$pid/comm"); chomp(my $who = $name && <$name> || "unknown");
    if (time > $end) {{ print STDERR "apt is locked by process $pid ($who) for {LOCK_WAIT} s: $path\\n"; exit 1 }}
    print STDERR "waiting for process $pid ($who), which holds $path\\n" unless $said++;
    sleep 1;
  }}
}}'"""

_APT = (
    "DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l NEEDRESTART_SUSPEND=1 apt-get -qq -y "
    f"-o DPkg::Lock::Timeout={LOCK_WAIT} -o Dpkg::Options::=--force-confdef "
    "-o Dpkg::Options::=--force-confold -o Dpkg::Use-Pty=0 -o Acquire::Retries=3"
)

_UPDATE = f"timeout -k 10 {UPDATE_SECONDS} env {_APT}"

# A host may have a policy-rc.d of its own: it is put aside, and back.
TAKE_GUARD = f"[ ! -e {GUARD} ] || grep -q groundwork {GUARD} || mv -T {GUARD} {GUARD}.kept; "
GIVE_GUARD = f"rm -f {GUARD}; [ ! -e {GUARD}.kept ] || mv -T {GUARD}.kept {GUARD}"

_GUARDED = (
    f"set -e; {TAKE_GUARD}trap '{GIVE_GUARD}' EXIT; trap 'exit 143' TERM HUP INT; "
    f"printf '#!/bin/sh\\n# groundwork: nothing starts while it is installed\\nexit 101\\n' >{GUARD}; "
    f"chmod 755 {GUARD}; "
)

# dpkg alone can't where a package was cut off while it was unpacked, or what it needs was not unpacked yet.
_REPAIR = (
    "DEBIAN_FRONTEND=noninteractive dpkg --configure -a --force-confold 2>/dev/null || true; "
    f"{_APT} --fix-broken --allow-change-held-packages install && "
    # Half unpacked, and yet apt takes them for installed.
    "half=$(dpkg-query -W -f='${Package} ${db:Status-Eflag}\n' | sed -n 's/ reinstreq$//p') && "
    f'{{ [ -z "$half" ] || {_APT} --reinstall --allow-change-held-packages install $half; }}'
)


@operation()
def packages(
    present: Iterable[str] | Mapping[str, str | None],
    held: Iterable[str] = (),
    upgrade_once: bool = False,
    setting: str = "a package's version",
):
    """Install what is missing, in one apt transaction, with no service started by it.

    Waits for another apt first, and finishes a dpkg that was interrupted. A package's own
    configuration files are kept where they were changed. What packages recommend is not installed.

    Args:
        present: names, or name -> version (None for any; 535.309.01-* for any that begins so). A version that
            differs is installed.
        held: names of those that apt shall not upgrade (`apt-mark hold`).
        upgrade_once: upgrade everything first, once in a host's life.
        setting: what names the versions, for the message when one does not exist.
    """
    wanted = dict(present) if isinstance(present, Mapping) else dict.fromkeys(present)
    yield from install(wanted, known(wanted), held, upgrade_once, setting)


def known(packages: Iterable[str]) -> AptState:
    """What the host says of apt, and of these packages."""
    versions = host.get_fact(Installed, packages=sorted(packages)) or {}
    return replace(host.get_fact(Apt) or AptState(), versions=versions)


def install(
    wanted: Mapping[str, str | None],
    now: AptState,
    held: Iterable[str] = (),
    upgrade_once: bool = False,
    setting: str = "a package's version",
    together: bool = False,
):
    """The commands of `packages`, for an operation that has asked already.

    Args:
        held: names of those to hold.
        together: where one is not as it shall be, all are brought to the newest that there is: they are made for each other.
    """
    missing = [name for name in wanted if _differs(now, name, wanted[name])]
    missing = list(wanted) if together and missing else missing
    first = upgrade_once and not now.upgraded
    if missing or first or now.broken:
        yield from _unlocked()
    yield from _repaired(now)
    if missing or first:
        yield from _updated(now)
    if first:
        report("upgrading all packages, as base_first_run_upgrade asks")
        yield f"{WAIT_FOR_LOCKS} && {_APT} upgrade && touch {UPGRADED}"
        yield FunctionCommand(_remind_of_old, (), {})
    if pinned := [f"{name}={wanted[name]}" for name in missing if wanted[name]]:
        yield _available(pinned, setting)
    if missing:
        report(f"installing {', '.join(missing)}")
        arguments = " ".join(shlex.quote(_argument(name, wanted[name])) for name in missing)
        yield f"{WAIT_FOR_LOCKS} || exit 1; {_GUARDED}{_APT} --no-install-recommends --allow-change-held-packages install {arguments}"
    if unheld := [name for name in held if name not in now.held or name in missing]:
        report(f"holding {', '.join(unheld)}")
        yield f"apt-mark hold {' '.join(unheld)} >/dev/null"


def _remind_of_old(state, host) -> None:
    _, output = host.run_shell_command(StringCommand(RUNNING_OLD), _sudo=True)
    if units := [line.split()[1] for line in output.stdout_lines if line]:
        remind(f"services go on with what was there before the upgrade: {', '.join(units)}. Reboot the host when it suits")


def fresh_lists(now: AptState):
    """The commands after which apt can be asked what there is; gives the state that they leave."""
    yield from _unlocked()
    yield from _repaired(now)
    yield from _updated(now)
    return replace(now, guard_left=False, broken=False, sources_newer=False, lists_age=0)


def _unlocked():
    """Wait for another apt where it is seen: what commands print is shown with -vvv only."""
    if state.is_executing:
        good, _ = host.run_shell_command(StringCommand(WAIT_FOR_LOCKS), print_output=True, _sudo=True)
        if not good:
            yield f"echo 'apt is locked by another program for {LOCK_WAIT} s: nothing was installed' >&2; exit 1"


def _differs(now: AptState, name: str, version: str | None) -> bool:
    installed = now.versions.get(name)
    return installed is None or (version is not None and not fnmatchcase(installed, version))


def _argument(name: str, version: str | None) -> str:
    return f"{name}={version}" if version else name


def _available(pinned: list[str], setting: str) -> str:
    """A command that stops where no repository has a version, and says which there are.

    The lists may be hours old: they are fetched before anything is said not to exist.
    """
    has = (
        'apt-cache madison "$name" | awk -v v="$version" \'BEGIN { any = sub(/[*]$/, "", v) } '
        "$3 == v || any && index($3, v) == 1 { found = 1 } END { exit !found }'"
    )
    every = 'apt-cache madison "$name" | awk \'!seen[$3]++ { print $3 }\' | head -n 20 | paste -sd" "'
    return (
        f"for item in {' '.join(map(shlex.quote, pinned))}; do name=${{item%%=*}}; version=${{item#*=}}; "
        f"{has} && continue; {WAIT_FOR_LOCKS} && {_UPDATE} update; {has} && continue; there=$({every}); "
        f'echo {shlex.quote(setting)}" = $version: no repository of this host has $name in that version; there is '
        '${there:-none}. Nothing was installed; put it right and run again" >&2; exit 1; done'
    )


def _repaired(now: AptState):
    if now.guard_left:
        report(f"removing {GUARD}, left by a run that was interrupted")
        yield GIVE_GUARD
    if now.broken:
        report("finishing what an interrupted dpkg left")
        yield f"{WAIT_FOR_LOCKS} || exit 1; {_GUARDED}{_REPAIR}"


def _updated(now: AptState):
    if now.sources_newer or now.lists_age is None or now.lists_age > LISTS_FRESH:
        report("updating the package lists")
        # Without Error-Mode, lists that could not be fetched count as a success, and as fresh for hours.
        yield (
            f"{WAIT_FOR_LOCKS} || exit 1; mkdir -p /var/lib/groundwork; "
            f"if {_UPDATE} -o APT::Update::Error-Mode=any update; then touch /var/lib/groundwork/apt-updated; "
            "else echo 'not every package list could be fetched: going on with what there is' >&2; fi"
        )
