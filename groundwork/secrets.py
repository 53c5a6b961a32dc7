"""Secrets: names in settings, values from the environment, an age file, or the lab's seed.

Settings and arguments hold `Secret("mongodb/admin")`, which is a name. The operation that writes
the value asks `SecretStore.for_inventory(...).value(name)` for it. No value is ever part of a repr,
an exception or a log. People edit the age file with `python -m groundwork.secrets`.
See docs/secrets.md.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import difflib
import fcntl
import getpass
import hmac
import os
import re
import runpy
import secrets  # the standard library's: an absolute import never finds this module
import shlex
import socket
import stat
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyrage
import yaml
from pyinfra.api.exceptions import PyinfraError

NAME = re.compile(r"[a-z0-9_]+(/[a-z0-9_.-]+)+")
LAB_PREFIX = "lab-"
DEFAULT_IDENTITY = "~/.config/groundwork/age.key"
DEFAULT_LAB_CACHE = "/var/cache/groundwork-lab"
KEPT = "/var/lib/groundwork/passwords"
"""Where a host keeps its databases' administrators' passwords as last seen to work there, for root alone:
the way in when a secret has changed."""


class SecretError(PyinfraError, ValueError):
    """A secret that can't be had, in one sentence for the user, without a value.

    A PyinfraError, so that pyinfra shows it without traceback; a ValueError, so that pydantic
    reports a bad name at the setting that holds it.
    """


class NotFound(SecretError):
    """No source has the secret."""


class SourceUnreadable(SecretError):
    """A whole source can't be read, so the sentence is the same for every name in it."""


class NotForYou(SourceUnreadable):
    """The age file is sound, but not encrypted to your identity."""


@dataclass(frozen=True, repr=False, order=True)
class Secret:
    """The name of a secret, such as `Secret("mongodb/admin")`. A bad name raises SecretError."""

    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            # What was given is not repeated: the usual mistake is to write the value here.
            raise SecretError(
                'a secret is given by its name, such as "mongodb/admin": lower-case letters, '
                "digits and _, then at least one / and more of these, . or - (what was given is "
                "not shown, in case it is the value)"
            )

    def __repr__(self) -> str:
        return f'Secret("{self.name}")'

    def to_json(self) -> str:
        """What pyinfra's `--json` and `debug-inventory` show for it."""
        return repr(self)


def variable(name: str) -> str:
    """The environment variable of a secret: GROUNDWORK_SECRET_MONGODB_ADMIN of mongodb/admin."""
    return "GROUNDWORK_SECRET_" + re.sub(r"[^A-Z0-9]", "_", name.upper())


# Sources -----------------------------------------------------------------------------------------


class Source(Protocol):
    """Where values come from."""

    def get(self, name: str) -> str | None:
        """The value, or None if this source doesn't have it. Raises SecretError."""

    def where(self, name: str) -> str:
        """Where `get` looks, for messages."""


class Environment:
    """Values from GROUNDWORK_SECRET_… variables: for CI, and to override for one run."""

    def get(self, name: str) -> str | None:
        value = os.environ.get(variable(name))
        if value == "":
            # CI systems set a variable they have no secret for to nothing; falling through to the
            # file would hide that.
            raise SecretError(f"{Secret(name)}: {self.where(name)} is set, but empty")
        return value

    def where(self, name: str) -> str:
        return f"the environment variable {variable(name)}"


class LabSeed:
    """Generated values: HMAC-SHA256 of the name with a random seed kept in the lab's cache."""

    def __init__(self) -> None:
        directory = os.environ.get("GROUNDWORK_LAB_CACHE") or DEFAULT_LAB_CACHE
        self.path = Path(directory) / "secret.seed"

    def get(self, name: str) -> str:
        digest = hmac.digest(self._seed(), name.encode(), "sha256")
        return LAB_PREFIX + base64.urlsafe_b64encode(digest).decode().rstrip("=")

    def where(self, name: str) -> str:
        return f"the lab's seed {self.path}"

    def _seed(self) -> bytes:
        try:
            if not self.path.exists():
                self._make()
            seed = self.path.read_bytes()
            mode = stat.S_IMODE(self.path.stat().st_mode)
        except OSError as error:
            raise SourceUnreadable(
                f"the lab's seed {self.path} can't be used: {error.strerror}; "
                "name another directory in GROUNDWORK_LAB_CACHE"
            ) from None
        if len(seed) != 32 or mode & 0o077:
            raise SourceUnreadable(
                f"the lab's seed {self.path} must be 32 bytes that only its owner reads "
                f"(it has {len(seed)}, mode {mode:04o}): remove it, and reset the lab's hosts"
            )
        return seed

    def _make(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _write_temporary(self.path.parent, secrets.token_bytes(32))
        try:
            # A link, unlike a rename, leaves alone the seed that another process has just made.
            os.link(temporary, self.path)
        except FileExistsError:
            pass
        finally:
            os.unlink(temporary)


class AgeFile:
    """The age file of an inventory and its recipients: secrets/prod.age, secrets/prod.recipients.

    Decrypted when first asked, and once per process.
    """

    def __init__(self, inventory: Path) -> None:
        inventories = inventory.parent
        root = inventories.parent if inventories.name == "inventories" else inventories
        self.inventory = inventory
        self.path = root / "secrets" / f"{inventory.stem}.age"
        self.recipients_path = self.path.with_suffix(".recipients")
        self.repository = next((d for d in (root, *root.parents) if (d / ".git").exists()), root)
        self._values: dict[str, str] | None = None
        self._lock = threading.Lock()

    def get(self, name: str) -> str | None:
        return self.values().get(name)

    def where(self, name: str) -> str:
        return _shown(self.path) + ("" if self.path.exists() else " (no such file)")

    def command(self, words: str) -> str:
        """The command line that does something to this file, for messages."""
        inventory = shlex.quote(_shown(self.inventory))
        return f"python -m groundwork.secrets --inventory {inventory} {words}"

    def values(self) -> dict[str, str]:
        """Names and values; none if there is no file. Raises SourceUnreadable."""
        with self._lock:
            if self._values is None:
                self._values = self.read() if self.path.exists() else {}
            return self._values

    def read(self) -> dict[str, str]:
        """Names and values as they are on disk now. Raises SourceUnreadable."""
        if not self.path.exists():
            raise SourceUnreadable(
                f"there is no {_shown(self.path)} yet: make it with `{self.command('init')}`"
            )
        try:
            ciphertext = self.path.read_bytes()
        except OSError as error:
            raise SourceUnreadable(f"{_shown(self.path)} can't be read: {error.strerror}") from None
        return self._parse(self._decrypt(ciphertext))

    @contextlib.contextmanager
    def editing(self) -> Iterator[dict[str, str]]:
        """Names and values to change in place: written back at the end, one process at a time."""
        with _locked(self.path.parent):
            values = self.read()
            yield values
            self.write(values)

    def write(self, values: dict[str, str]) -> None:
        """Encrypt to the recipients and replace the file. Raises SecretError, changing nothing."""
        # Quoted, since PyYAML loses some characters (U+0085, U+2028) when it writes them plain.
        plaintext = yaml.safe_dump(values, allow_unicode=True, default_style='"').encode()
        ciphertext = pyrage.encrypt(plaintext, self.recipients(), armored=True)
        try:
            same = self._parse(self._decrypt(ciphertext)) == values
        except NotForYou:
            raise SecretError(
                f"{_shown(self.recipients_path)} doesn't list your own key, so you could not read "
                f"the file any more: add {self._own_recipient()}, or let somebody do this who stays"
            ) from None
        if not same:
            raise SecretError("a value does not survive being written and read: nothing is changed")
        replace(self.path, ciphertext)
        with self._lock:
            self._values = None

    def recipients(self) -> list[Any]:
        """Public keys that can read. Raises SecretError with the line that is wrong."""
        try:
            lines = self.recipients_path.read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            raise SecretError(
                f"{_shown(self.recipients_path)} can't be read: it lists who can read the secrets, "
                "one age or ssh public key a line"
            ) from None
        found = [
            _recipient(line, f"{_shown(self.recipients_path)}, line {number}")
            for number, line in enumerate((line.strip() for line in lines), 1)
            if line and not line.startswith("#")
        ]
        if not found:
            raise SecretError(f"{_shown(self.recipients_path)} lists no public key")
        return found

    def init(self) -> str:
        """Make what is missing of identity, recipients and file. Returns what to do next."""
        new = not identity_path().exists()
        if new:
            _make_identity(identity_path(), self.repository)
        yours = f"Your private key is new: {identity_path()}. Keep a copy: whoever has none of the keys has none of the secrets.\n" if new else ""
        own = self._own_recipient()
        self.path.parent.mkdir(exist_ok=True)
        with _locked(self.path.parent):
            if not self.path.exists():
                self._add_recipient(own)
                self.write({})
                return f"{yours}{_shown(self.path)} is made. Add a secret: {self.command('add NAME')}"
        try:
            self.read()
        except NotForYou:
            return (
                f"{yours}{_shown(self.path)} is there, but not for you yet. Your public key is\n{own}\n"
                f"Ask somebody who can read it to add this line to {_shown(self.recipients_path)} "
                f"and to run: {self.command('rekey')}"
            )
        return f"{_shown(self.path)} is there, and you can read it."

    def _add_recipient(self, own: str) -> None:
        old = self.recipients_path.read_text() if self.recipients_path.exists() else ""
        if own in old:
            return
        who = f"# {os.environ.get('USER') or 'somebody'}@{socket.gethostname()}"
        head = old.rstrip("\n") + "\n" if old else "# Who can read the .age file of the same name\n"
        replace(self.recipients_path, f"{head}{who}\n{own}\n".encode(), mode=0o644)

    def _own_recipient(self) -> str:
        path = identity_path()
        first = self._identities()[0]
        if isinstance(first, pyrage.x25519.Identity):
            return str(first.to_public())
        public = Path(f"{path}.pub")
        if not public.exists():
            raise SecretError(f"{path} is an ssh key, and its public half {public} is not there")
        return public.read_text().strip()

    def _identities(self) -> list[Any]:
        path = identity_path()
        if not path.exists():
            raise SourceUnreadable(
                f"there is no age identity {path} to decrypt {_shown(self.path)}: make one with "
                f"`{self.command('init')}`, or name yours in GROUNDWORK_AGE_IDENTITY"
            )
        return _load_identities(path, self.repository)

    def _decrypt(self, ciphertext: bytes) -> bytes:
        identities = self._identities()
        try:
            return pyrage.decrypt(ciphertext, identities)
        except pyrage.DecryptError as error:
            reason = str(error)
        if "No matching keys" in reason:
            raise NotForYou(
                f"{_shown(self.path)} is not encrypted to your identity {identity_path()}: ask "
                "somebody who can read it to add your public key to "
                f"{_shown(self.recipients_path)} and to run `{self.command('rekey')}`"
            )
        raise SourceUnreadable(
            f"{_shown(self.path)} is damaged and can't be decrypted: take it from version control"
        )

    def _parse(self, plaintext: bytes) -> dict[str, str]:
        shown = _shown(self.path)
        data = _load_yaml(plaintext)
        if not isinstance(data, dict):
            raise SourceUnreadable(
                f"{shown} must hold a YAML mapping of names to values, and doesn't"
            )
        for position, (name, value) in enumerate(data.items(), 1):
            # Names are shown only once they look like names: the two may have been swapped.
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise SourceUnreadable(f"{shown}: entry {position} has no valid name")
            if not isinstance(value, str) or not value:
                raise SourceUnreadable(f"{shown}: the value of {name} must be text, and not empty")
        return data


# Store -------------------------------------------------------------------------------------------

_AGE_FILES: dict[Path, AgeFile] = {}


class SecretStore:
    """The values that an inventory may use."""

    def __init__(self, inventory: Path, lab: bool, file: AgeFile | None = None) -> None:
        self.inventory = inventory
        self.lab = lab
        self.file = file
        self.sources: list[Source] = [Environment(), file or LabSeed()]

    @classmethod
    def for_inventory(cls, inventory: str | Path, lab: bool) -> SecretStore:
        """The store of an inventory file. Reads nothing yet, and raises nothing."""
        # Not resolved: the name that was given decides, also when it is a link.
        path = Path(os.path.abspath(inventory))
        if lab:
            return cls(path, lab)
        # deploy.py is executed once per host; the file is decrypted once for all.
        return cls(path, lab, _AGE_FILES.setdefault(path, AgeFile(path)))

    def value(self, name: str | Secret) -> str:
        """The value of a secret. Raises SecretError: where it was looked for, what adds it."""
        secret = _secret(name)
        try:
            return self._find(secret)
        except SourceUnreadable as error:
            raise SecretError(
                f"{secret} is not in {self.sources[0].where(secret.name)}, and {error}"
            ) from None

    def missing(self, names: Iterable[str | Secret], random: Iterable[str] = ()) -> list[str]:
        """What is wrong with these secrets, one message each; a source's trouble is told once.

        Args:
            random: names for which a random value does.
        """
        messages: list[str] = []
        absent: list[str] = []
        unreadable: dict[str, list[str]] = {}
        plain = {name.name if isinstance(name, Secret) else name for name in names}
        for name in sorted(plain):
            try:
                self._find(_secret(name))
            except SourceUnreadable as error:
                unreadable.setdefault(str(error), []).append(name)
            except NotFound:
                absent.append(name)
            except SecretError as error:
                messages.append(str(error))
        if absent:
            messages.append(self._absent(absent, set(random)))
        return messages + [f"{text} (needed for {', '.join(n)})" for text, n in unreadable.items()]

    def names(self) -> list[str]:
        """Names in the age file; none for a lab, whose values are generated as they are asked for.

        Raises SourceUnreadable.
        """
        return sorted(self.file.values()) if self.file else []

    def _find(self, secret: Secret) -> str:
        for source in self.sources:
            value = source.get(secret.name)
            if value is None:
                continue
            if value.startswith(LAB_PREFIX) and not self.lab:
                raise SecretError(
                    f"{secret}: {source.where(secret.name)} holds a lab secret in a production "
                    f"inventory ({_shown(self.inventory)}): values that start with {LAB_PREFIX} "
                    "are for the lab"
                )
            return value
        raise NotFound(self._not_found(secret))

    def _not_found(self, secret: Secret) -> str:
        # A lab's seed has every name, so there is a file here.
        assert self.file is not None
        places = " nor in ".join(source.where(secret.name) for source in self.sources)
        init = "" if self.file.path.exists() else f"`{self.file.command('init')}`, then "
        add = self.file.command(f"add {secret.name}")
        return f"{secret} is neither in {places}; add it with {init}`{add}`"

    def _absent(self, names: list[str], random: set[str]) -> str:
        """Where these were looked for, and the commands that add them, one a line."""
        assert self.file is not None
        made = [name for name in names if name in random]
        commands = [] if self.file.path.exists() else [self.file.command("init")]
        commands += [self.file.command(f"add --generate {' '.join(made)}") + "    # random values"] if made else []
        commands += [f"{self.file.command(f'add {name}')}    # asks for the value; of a file: … <FILE" for name in names if name not in random]
        more = ", …" if len(names) > 1 else ""
        return (
            f"{', '.join(names)}: neither in the environment ({variable(names[0])}{more}) nor in "
            f"{self.file.where(names[0])}. To add {'them' if more else 'it'}:\n"
            + "\n".join(f"      {command}" for command in commands)
        )


def is_lab_inventory(path: str | Path) -> bool:
    """Whether an inventory file has lab hosts: `(name, {"lab_suite": …})` in a list at top level.

    Runs the file. Raises SecretError if there is none, or it doesn't run.
    """
    path = Path(os.path.abspath(path))
    try:
        source = path.read_text()
    except (OSError, UnicodeDecodeError):
        raise SecretError(f"there is no inventory file {_shown(path)}") from None
    if "lab" not in source:
        # Can't come from lab_host(). Not run, since it may ask AWS for its hosts.
        return False
    return any(_has_lab_host(group) for group in _run_inventory(path).values())


def _run_inventory(path: Path) -> dict[str, Any]:
    root = path.parent.parent if path.parent.name == "inventories" else path.parent
    sys.path.insert(0, str(root))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return runpy.run_path(str(path))
    except (Exception, SystemExit) as error:
        raise SecretError(
            f"{_shown(path)} doesn't run, so it can't be told whether it is a lab: "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from None
    finally:
        sys.path.remove(str(root))


def _has_lab_host(group: Any) -> bool:
    if isinstance(group, tuple) and len(group) == 2:  # a group with data: (hosts, data)
        hosts, data = group
        return _carries_suite(data) or _has_lab_host(hosts)
    return isinstance(group, list) and any(
        isinstance(host, tuple) and len(host) == 2 and _carries_suite(host[1]) for host in group
    )


def _carries_suite(data: Any) -> bool:
    return isinstance(data, dict) and "lab_suite" in data


# Keys and files ----------------------------------------------------------------------------------


def identity_path() -> Path:
    """The file with the private key that decrypts."""
    # os.path's expanduser, since Path's raises for a user without a home.
    named = os.environ.get("GROUNDWORK_AGE_IDENTITY") or DEFAULT_IDENTITY
    return Path(os.path.expanduser(named))


def _refuse_within(path: Path, repository: Path) -> None:
    """Raise SourceUnreadable if the identity lies within the repository, also through a link."""
    if path.resolve().is_relative_to(repository.resolve()):
        raise SourceUnreadable(
            f"the identity {path} lies within the repository {repository}, where a private key is "
            f"one `git add` from everybody: move it to {DEFAULT_IDENTITY}"
        )


def _load_identities(path: Path, repository: Path) -> list[Any]:
    """Private keys of an age or ssh identity file. Raises SourceUnreadable."""
    _refuse_within(path, repository)
    try:
        with path.open("rb") as file:
            info = os.fstat(file.fileno())
            content = file.read()
    except OSError as error:
        raise SourceUnreadable(f"the identity {path} can't be read: {error.strerror}") from None
    quoted = shlex.quote(str(path))
    if info.st_uid != os.geteuid():
        raise SourceUnreadable(
            f"the identity {path} belongs to user id {info.st_uid}, not to you ({os.geteuid()}): "
            f"use one of your own, or type `sudo chown {os.geteuid()} {quoted}`"
        )
    if info.st_mode & 0o077:
        raise SourceUnreadable(
            f"the identity {path} is open to others (mode {stat.S_IMODE(info.st_mode):04o}): "
            f"type `chmod 600 {quoted}`"
        )
    identities = _parse_identities(content)
    if not identities:
        raise SourceUnreadable(
            f"{path} holds no identity: it takes lines AGE-SECRET-KEY-1…, or an ssh key of type "
            "ed25519 or rsa without passphrase"
        )
    return identities


def _parse_identities(content: bytes) -> list[Any]:
    """Private keys in the text of a file; none if it is not right."""
    try:
        if content.startswith(b"-----BEGIN"):
            return [pyrage.ssh.Identity.from_buffer(content)]
        lines = [line.strip() for line in content.decode().splitlines()]
        return [
            pyrage.x25519.Identity.from_str(line)
            for line in lines
            if line and not line.startswith("#")
        ]
    except (pyrage.IdentityError, UnicodeDecodeError):
        return []


def _make_identity(path: Path, repository: Path) -> None:
    _refuse_within(path, repository)
    identity = pyrage.x25519.Identity.generate()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # O_EXCL: a key that is there is never written over.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"# public key: {identity.to_public()}\n{identity}\n")


def _recipient(line: str, where: str) -> Any:
    """A public key. Raises SecretError that says where."""
    if line.upper().startswith("AGE-SECRET-KEY"):
        raise SecretError(
            f"{where} is a private key: remove it, make a new identity, and rotate the secrets"
        )
    try:
        if line.startswith("ssh-"):
            return pyrage.ssh.Recipient.from_str(line)
        return pyrage.x25519.Recipient.from_str(line.split()[0])
    except pyrage.RecipientError:
        raise SecretError(
            f"{where} is not a public key: it takes age1…, ssh-ed25519 … or ssh-rsa …"
        ) from None


def _load_yaml(plaintext: bytes) -> Any:
    """The payload with every scalar as text; None if it is not YAML.

    No exception leaves from here, because YAML's quote the text around the mistake.
    """
    try:
        # BaseLoader: 007 and yes stay what was written.
        return yaml.load(plaintext.decode(), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError):
        return None


def _write_temporary(directory: Path, content: bytes) -> str:
    """Write a 0600 file and force it to disk. Returns its path."""
    descriptor, temporary = tempfile.mkstemp(dir=directory, prefix=".new-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        os.unlink(temporary)
        raise
    return temporary


def replace(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace a file atomically: after a crash it is the old one or the new one, whole."""
    temporary = _write_temporary(path.parent, content)
    try:
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock: the file itself is replaced, and a lock file would be litter."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except FileNotFoundError:
        # No directory, no file: let read() say so.
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        # Said, since gevent, which pyinfra patches in, puts off closing what is no regular file.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _secret(name: str | Secret) -> Secret:
    return name if isinstance(name, Secret) else Secret(name)


def _shown(path: Path) -> str:
    """The path as one would type it here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


# Command line ------------------------------------------------------------------------------------


def generate() -> str:
    """A random value of 32 url-safe characters."""
    while True:
        value = secrets.token_urlsafe(24)
        # Not a leading dash, which programs take for an option.
        if value[0].isalnum() and not value.startswith(LAB_PREFIX):
            return value


def _given_value(name: str) -> str:
    """The value as piped, or as typed twice. Raises SecretError."""
    if _on_terminal(sys.stdin):
        try:
            value = getpass.getpass(f"Value of {name}: ")
            again = getpass.getpass("Once more: ")
        except EOFError:
            raise SecretError("no value was typed") from None
        if value != again:
            raise SecretError("the two values differ")
    else:
        value = _piped_value()
    if not value:
        raise SecretError("the value is empty")
    if "\0" in value:
        raise SecretError("the value holds a NUL character, which no configuration file can carry")
    if value.startswith(LAB_PREFIX):
        raise SecretError(f"a value must not start with {LAB_PREFIX}, which marks the lab's")
    return value


def _piped_value() -> str:
    try:
        # Bytes, so that line ends stay as they are.
        return sys.stdin.buffer.read().decode().removesuffix("\n") if sys.stdin else ""
    except UnicodeDecodeError:
        pass
    raise SecretError("the value on standard input is not UTF-8 text")


def _on_terminal(stream: Any) -> bool:
    return stream is not None and stream.isatty()


def _is_piped() -> bool:
    """Whether standard input is a pipe or a file, so that somebody may mean it as the value."""
    if sys.stdin is None:
        return False
    mode = os.fstat(sys.stdin.fileno()).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _refuse_known(names: list[str], values: dict[str, str], file: AgeFile) -> None:
    for name in names:
        if name in values:
            raise SecretError(
                f"{name} is there already; change it with `{file.command(f'rotate {name}')}`"
            )


def _require_known(name: str, values: dict[str, str], file: AgeFile) -> None:
    if name not in values:
        raise SecretError(f"there is no {name} in {_shown(file.path)}")


def _init(file: AgeFile, options: argparse.Namespace) -> None:
    print(file.init())


def _add(file: AgeFile, options: argparse.Namespace) -> None:
    _refuse_known(options.names, file.read(), file)
    # The lock is not held while somebody types, hence the second look.
    new = {name: generate() if options.generate else _given_value(name) for name in options.names}
    with file.editing() as values:
        _refuse_known(options.names, values, file)
        values.update(new)
    print(f"{', '.join(new)}: added. Commit {_shown(file.path)}.")


def _rotate(file: AgeFile, options: argparse.Namespace) -> None:
    _require_known(options.name, file.read(), file)
    if options.generate is None and _is_piped():
        raise SecretError(
            "standard input is not a terminal: say --no-generate to take the value from it, or "
            "--generate for a random one"
        )
    value = _given_value(options.name) if options.generate is False else generate()
    with file.editing() as values:
        _require_known(options.name, values, file)
        values[options.name] = value
    print(
        f"{options.name} is changed in {_shown(file.path)}, and not yet on the hosts. Commit it "
        f"and run the deploy: pyinfra {shlex.quote(_shown(file.inventory))} deploy.py"
    )


def _remove(file: AgeFile, options: argparse.Namespace) -> None:
    with file.editing() as values:
        _require_known(options.name, values, file)
        del values[options.name]
    print(f"{options.name} is removed. Commit {_shown(file.path)}.")


def _rekey(file: AgeFile, options: argparse.Namespace) -> None:
    with file.editing():
        pass
    print(
        f"{_shown(file.path)} can be read with the {len(file.recipients())} key(s) of "
        f"{_shown(file.recipients_path)}. Commit both. Who was taken off still has the old file: "
        "rotate what they knew."
    )


def _list(store: SecretStore, options: argparse.Namespace) -> None:
    if store.file is None:
        print("\n".join(_wanted(store.inventory)))
        print("\nThe values of a lab are generated as they are asked for: show NAME")
        return
    names = sorted(store.file.read())
    store.file.recipients()
    print("\n".join(names) if names else "(no secrets yet)")
    print(f"\nFor whom, as of {_shown(store.file.recipients_path)}:")
    print(store.file.recipients_path.read_text().strip())


def _show(store: SecretStore, options: argparse.Namespace) -> None:
    if not options.force and not _on_terminal(sys.stdout):
        raise SecretError(
            "a value is shown to a terminal only; --force if you mean this file or pipe"
        )
    if store.file is None and options.name not in (wanted := _wanted(store.inventory)):
        # A lab would generate a value for any name, and nobody would use it.
        near = difflib.get_close_matches(options.name, wanted, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise SecretError(
            f"no role of {_shown(store.inventory)} uses {options.name}; {meant}There are {', '.join(wanted) or 'none'}"
        )
    print(store.value(options.name))


def _wanted(inventory: Path) -> list[str]:
    """Names of the secrets that the roles of an inventory use."""
    from groundwork.context import load
    from groundwork.topology import SettingsError

    try:
        with contextlib.redirect_stdout(sys.stderr):
            return sorted(load(inventory).secret_names())
    except SettingsError as error:
        raise SecretError(f"{_shown(inventory)} has settings that are refused: {error.errors[0]}") from None


READING = {"list": _list, "show": _show}
WRITING = {"init": _init, "add": _add, "rotate": _rotate, "remove": _remove, "rekey": _rekey}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m groundwork.secrets",
        description="The secrets of an inventory, in an age file beside it.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--inventory", help="such as inventories/prod.py; default: that of the only secrets/*.age"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False)

    command("init", "make your identity, the recipients file and an empty age file, if missing")
    command("list", "names, and the keys that can read them")
    command("rekey", "encrypt again, to the keys now in the recipients file")
    add = command("add", "add a secret: the value from standard input, or typed twice; or several, with --generate")
    add.add_argument("--generate", action="store_true", help="a random value of 32 characters for each")
    add.add_argument("names", metavar="NAME", nargs="+", help="such as mongodb/admin")
    rotate = command("rotate", "change a secret: a random value, unless --no-generate")
    rotate.add_argument(
        "--generate",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="a random value of 32 characters, or one from standard input or typed twice",
    )
    show = command("show", "print a value, to a terminal")
    show.add_argument("--force", action="store_true", help="also to a file or a pipe")
    for named in (rotate, show, command("remove", "remove a secret")):
        named.add_argument("name", metavar="NAME", help="such as mongodb/admin")
    return parser


def default_inventory() -> Path:
    """The inventory of the only age file here. Raises SecretError."""
    found = sorted(Path("secrets").glob("*.age"))
    if len(found) != 1:
        there = ", ".join(str(path) for path in found) or "none in secrets/"
        raise SecretError(f"say --inventory inventories/NAME.py (age files: {there})")
    return Path("inventories") / f"{found[0].stem}.py"


def _run(options: argparse.Namespace) -> None:
    names = [options.name] if hasattr(options, "name") else getattr(options, "names", [])
    for name in names:
        Secret(name)
    inventory = Path(options.inventory) if options.inventory else default_inventory()
    store = SecretStore.for_inventory(inventory, lab=is_lab_inventory(inventory))
    if options.command in READING:
        READING[options.command](store, options)
    elif store.file is None:
        another = variable(names[0]) if names else "GROUNDWORK_SECRET_…"
        raise SecretError(
            f"{_shown(store.inventory)} is a lab: its values are generated, not kept; another value is "
            f"given for a run, in the environment variable {another}"
        )
    else:
        WRITING[options.command](store.file, options)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0, 1 for what can't be done, 2 for usage."""
    parser = _parser()
    options, more = parser.parse_known_args(arguments)
    if more or len(getattr(options, "names", [])) > 1 and not options.generate:
        # Not argparse's own message, which would print what may be a value.
        print(
            "error: too many words after the command; a value is never given on the command line, "
            "where other users and the shell's history see it: pipe it, or type it when asked",
            file=sys.stderr,
        )
        return 2
    try:
        _run(options)
    except SecretError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'input or output'}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
