"""How hosts are logged in to, as the inventory says it: users, sudo with a password, jump hosts, and the same for OpenSSH."""

from __future__ import annotations

import getpass
import os
import shlex
from pathlib import Path
from typing import Iterable

from pyinfra.api import StringCommand
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.host import Host
from pyinfra.connectors.sshuserclient import client

from facts.machine import Machine
from groundwork import context
from groundwork.connections import SSHConfig, StrictPolicy, SudoPasswordWanted, Target
from groundwork.questions import asking
from groundwork.secrets import variable
from groundwork.settings import ConnectionSettings, HostSettings
from groundwork.topology import Here

# The file is the user's alone, and lies where it goes with the session (logind's runtime directory): a
# password in sudo's environment, as pyinfra passes it, would be in a command line that `ps` shows.
# There is none without logind; there a killed run leaves its file, and one of a later day takes it away.
_ASKPASS = """umask 077; d=${XDG_RUNTIME_DIR:-}; [ -d "$d" ] || d=/dev/shm
find /dev/shm -maxdepth 1 -name 'groundwork-askpass.*' -user "$(id -u)" -mmin +720 -delete 2>/dev/null
t=$(mktemp "$d/groundwork-askpass.XXXXXX") && cat >"$t" && chmod 700 "$t" && echo "$t" """

# Host keys


def unknown_at(host: Host, here: Here, port: int) -> str | None:
    """Why a connection to another port of a host would be refused, and the command that mends it.

    Args:
        port: where sshd shall listen; the host is known at the one that we are connected to.
    Returns:
        None where it will not be: its key is known there, or is taken down by itself.
    """
    connected = getattr(host.connector, "client", None)
    if connected is None or not isinstance(connected._policy, StrictPolicy):
        return None
    address = stanza_of(here).get("hostname", str(here.data.get("ssh_hostname") or here.name))
    file = str(connected._host_keys_filename)
    now, then = (Target(address, number) for number in (int(connected._ssh_config["port"]), port))
    if connected.get_host_keys().lookup(then.entry):
        return None
    name, known_hosts = shlex.quote(now.entry), shlex.quote(file)
    # Not a certificate authority's line, which starts with @.
    # An empty line first: the last one may have no end.
    copy = f"{{ echo; ssh-keygen -F {name} -f {known_hosts} | sed -n '/^[#@]/!s/^[^ ]*/{then.entry}/p'; }} >>{known_hosts}"
    return (
        f"its host key is known at port {now.port} alone, and at port {port} sshd would be taken for another host "
        f"(ssh_strict_host_key_checking). Copy it, then run again: {copy}"
    )


# sudo


def give_sudo_password(host: Host, password: str) -> None:
    """Let sudo on a host ask a file for the password, for as long as this run is connected.

    pyinfra removes the file when it disconnects.

    Raises:
        PyinfraError: where the file can't be made.
    """
    script = f"#!/bin/sh\nprintf '%s\\n' {shlex.quote(password)}\n"
    good, output = host.run_shell_command(StringCommand(_ASKPASS), _stdin=script)
    if not good or not output.stdout_lines:
        raise PyinfraError(f"can't hold sudo's password: {' '.join(output.stderr_lines[-1:])}")
    path = output.stdout_lines[-1].strip()
    # pyinfra's own way with a password, but its askpass program is ours, and the value none.
    host.connector_data[f"sudo_askpass_path__{host.get_temp_dir_config()}"] = path
    host.connector_data["prompted_sudo_password"] = "in-the-askpass-file"


def ask_machine(host: Host, here: Here, sudo_password: str | None) -> str | None:
    """Ask a host what it is: the first command of a run that needs sudo.

    Args:
        sudo_password: value of the setting sudo_password, None where it is not set.
    Returns:
        What is wrong, or None: `here.machine` is set then.
    """
    fact = Machine()
    try:
        if sudo_password is not None:
            give_sudo_password(host, sudo_password)
        with asking(host):
            good, output = host.run_shell_command(StringCommand(fact.command()), _sudo=True)
    except SudoPasswordWanted:
        return _sudo_error("a password is required", here)
    except PyinfraError as error:
        return f"{here.name}: {error}"
    if not good:
        return _sudo_error(" ".join(output.stderr_lines[-1:]), here)
    if not output.stdout_lines:
        return f"{here.name}: the login of {login(here)} ends well and says nothing: is its shell, or a forced command, in the way?"
    if not output.stdout_lines[0].startswith(fact.FIRST):
        return _talks(output.stdout_lines[0], here)
    here.machine = fact.process(output.stdout_lines)
    return None


def _talks(said: str, here: Here) -> str:
    return (
        f"{here.name}: the login shell of {login(here)} says {said!r} before each command's answer, which no answer can be told "
        "from: let it say that only where somebody sees it (in ~/.bashrc, ~/.zshenv or config.fish: `[ -t 1 ] && …`)"
    )


def _sudo_error(said: str, here: Here) -> str:
    user = here.data.get("ssh_user") or "the ssh_user"
    setting = 'sudo_password = Secret("sudo/NAME")'
    if "password is required" in said or "authentication is required" in said:
        return (
            f"{here.name}: sudo asks {user} for a password: set {setting} (and that secret), or let {user} do "
            f"without: `{user} ALL=(ALL:ALL) NOPASSWD: ALL` in /etc/sudoers.d/{user} (visudo -f)"
        )
    if "incorrect password" in said or "no password was provided" in said:
        return f"{here.name}: sudo refuses the password of {user}, which is {_sudo_secret(here)}"
    if "not in the sudoers" in said or "not allowed" in said or "may not run" in said:
        return (
            f"{here.name}: {user} may not use sudo: as root, `usermod -aG sudo {user}`, or set ssh_user to one who may"
        )
    if "not found" in said and "sudo" in said:
        return f"{here.name}: there is no sudo: install it as root (apt-get install sudo)"
    return f"{here.name}: can't be asked what it is, with sudo, as {user}: {said or 'it gave no answer (was the connection lost?)'}"


def _sudo_secret(here: Here) -> str:
    """Where sudo's password was read, and how another is put there."""
    secret, store = here.settings(HostSettings).sudo_password, context.secret_store()
    if secret is None:
        return "not set: set sudo_password"
    source = next(source for source in store.sources if source.get(secret.name) is not None)
    if source is store.file:
        way = f"`{store.file.command(f'rotate --no-generate {secret.name}')}`"
    else:
        way = f"give it in the environment variable {variable(secret.name)}"
    return f"the secret {secret.name} in {source.where(secret.name)} (sudo_password); to put the right one there: {way}"


# Jump hosts


def stanza_of(here: Here) -> dict[str, str]:
    """What ssh_config_file says of a host, by ssh_config(5)'s words in lower case."""
    path = here.settings(ConnectionSettings).config_file
    file = Path(path or "~/.ssh/config").expanduser()
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8") as lines:
        config = SSHConfig()
        config.parse(lines)
    return config.lookup(str(here.data.get("ssh_hostname") or here.name))


def login(here: Here) -> str:
    """The user whom we log in as: set, or ssh_config_file's, or ours here."""
    return here.data.get("ssh_user") or stanza_of(here).get("user") or local_user()


def local_user() -> str:
    """Who we are on this machine."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in some containers
        return str(os.getuid())


def jumps(here: Here) -> list[str]:
    """Addresses, or names, of the jump hosts on the way to a host."""
    hops = stanza_of(here).get("proxyjump")
    if not hops:
        return []
    config = client.get_ssh_config(here.data.get("ssh_config_file"))
    names = [client.SSHClient.derive_shorthand(config, hop)[0] for hop in hops.split(",")]
    return [config.lookup(name).get("hostname", name) for name in names]


def openssh_config(hosts: Iterable[Here], options: Iterable[str] = ()) -> str:
    """The connections of an inventory as OpenSSH reads them: `ssh -F FILE NAME`.

    Args:
        options: more lines for each host.
    """
    stanzas, includes = [], {}
    for here in hosts:
        stanzas += [f"Host {here.name}", *(f"  {line}" for line in [*_openssh_lines(here), *options])]
        # With the jump hosts' own stanzas, for the ssh that ProxyJump starts.
        more = Path(here.settings(ConnectionSettings).config_file or "~/.ssh/config").expanduser().resolve()
        includes.update({f'  Include "{more}"': None} if more.is_file() else {})
    return "\n".join([*stanzas, "Match all", *includes, ""])


_OPENSSH = {
    "ssh_hostname": "HostName",
    "ssh_user": "User",
    "ssh_port": "Port",
    "ssh_key": "IdentityFile",
    "ssh_known_hosts_file": "UserKnownHostsFile",
}
"""pyinfra's settings by OpenSSH's words."""


def _openssh_lines(here: Here) -> Iterable[str]:
    """What pyinfra would do; a stanza of ssh_config_file counts for the host's address, which is not its name here."""
    given = {word: here.data[name] for name, word in _OPENSSH.items() if here.data.get(name)}
    stanza = {word: value for word, value in stanza_of(here).items() if word not in map(str.lower, given)}
    yield from (f'{word} "{value}"' for word, value in given.items())
    yield f"StrictHostKeyChecking {here.settings(ConnectionSettings).strict_host_key_checking}"
    yield from (f"{word} {stanza[word]}" for word in ("hostname", "user", "port", "proxyjump", "proxycommand") if word in stanza)
    yield from (f'IdentityFile "{path}"' for path in stanza.get("identityfile", []))


def leaked_password(data: dict) -> list[str]:
    """Keys by which pyinfra would put a password of sudo's into command lines on the host."""
    return [name for name in ("_sudo_password", "_su_password") if name in data]
