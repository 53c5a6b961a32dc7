"""Python environments, made with uv from a lock, at a path that names what is in them."""

from __future__ import annotations

import base64
import gzip
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Iterable, Mapping

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.uv import STAMP, Environments, EnvironmentsState
from groundwork import cache
from groundwork.context import current, secret_value
from groundwork.secrets import Secret
from groundwork.settings import HostSettings
from operations.report import report, stop

UV_VERSION = "0.13.9"
"""As in requirements.txt: the uv that resolved a lock is the uv that installs it."""
UV = f"/usr/local/lib/groundwork/uv-{UV_VERSION}/uv"
CACHE = "/var/cache/groundwork/uv"
"""On a host: shared by all environments, root's, so that no service can change what another imports."""
PACKAGES = ("python3", "ca-certificates")
"""What a role must have installed before it makes an environment."""

_PLATFORMS = {"amd64": "x86_64-manylinux2014", "arm64": "aarch64-manylinux2014"}

# uv's two names for "the host's certificates" cover its versions: a company's mirror, or a proxy
# that looks into TLS, is signed by an authority that only the host's own store knows.
_ENVIRONMENT = (
    "UV_PYTHON_DOWNLOADS=never UV_SYSTEM_CERTS=1 UV_NATIVE_TLS=1 UV_NO_CONFIG=1 UV_NO_PROGRESS=1 "
    f"UV_HTTP_TIMEOUT=120 UV_CACHE_DIR={CACHE}"
)


@operation()
def environment(
    path: str,
    requirements: str | Path,
    python: str | None = None,
    build: bool = False,
    link: bool = True,
    torch_backend: str | None = None,
):
    """Make a directory's environment hold what a lock says; `PATH/current` names it.

    Environments can't be moved (their scripts name their interpreter), so each is built where it
    stays, in `PATH/<name()>`, and counts only once its stamp is written. Then the link is flipped.
    All but the new one and the one before are removed.

    Args:
        path: directory of the environments: /opt/chromadb/environments.
        requirements: the lock: a file on the controller (as a Path, or a text without line break), or
            its text. With hashes in it, every package must have one.
        python: interpreter on the host, a name or a path; by default /usr/bin/python3.
        build: allow packages that come as source only: their build scripts run as root.
        link: keep `current` and remove old environments; else the caller decides what is used.
        torch_backend: which of PyTorch's own indexes has its packages, by uv's name (cu128, cpu): those of a lock
            with `torch==…+cu128` are on no other (groundwork.cuda.build_of reads it from there).
    """
    lock, interpreter = lock_text(requirements), python or "/usr/bin/python3"
    wanted = name(lock, python, torch_backend)
    now = host.get_fact(Environments, path=path, uv=UV, python=interpreter) or EnvironmentsState()
    if wanted not in now.complete or (now.python and now.complete[wanted] != now.python):
        yield from _uv(now)
        report(f"{path}/{wanted}: new environment")
        yield _build(f"{path}/{wanted}", lock, interpreter, build, torch_backend)
    if not link:
        return
    if now.current != wanted:
        report(f"{path}/current: {wanted}")
        yield (
            f"cd {shlex.quote(path)} && ln -sfn {wanted} .current.new && mv -fT .current.new current"
        )
    if old := _old(now, wanted):
        report(f"{path}: removing {', '.join(old)}")
        yield remove(path, old)


@operation()
def begin(environments: Iterable[Mapping[str, Any]]):
    """Begin environments that are not there, while the host is busy with other things; nobody waits for them here.

    `environment` does, by the lock that a build holds, and makes anew what did not come to its end. One is built after
    the other. Those that may need packages that are still to be installed are
    left to `environment`: with build scripts, or for a Python that is not there.

    Args:
        environments: arguments of `environment`, of each.
    """
    for arguments in environments:
        lock, python, torch = lock_text(arguments["requirements"]), arguments.get("python"), arguments.get("torch_backend")
        interpreter, path = python or "/usr/bin/python3", arguments["path"]
        now = host.get_fact(Environments, path=path, uv=UV, python=interpreter) or EnvironmentsState()
        wanted = name(lock, python, torch)
        if arguments.get("build") or not now.python or wanted in now.complete:
            continue
        yield from _uv(now)
        report(f"{path}/{wanted}: begun")
        yield _detached(_build(f"{path}/{wanted}", lock, interpreter, False, torch))


def _detached(build: StringCommand) -> StringCommand:
    """The command goes on by itself; what is on its standard input stays out of command lines and files."""
    alone = f"flock {os.path.dirname(CACHE)}/begin.lock sh -c {shlex.quote(build.get_raw_value())}"
    return StringCommand(
        f"set -e; mkdir -p $(dirname {CACHE}); given=$(cat; echo .); "
        f'{{ printf %s "${{given%.}}" | setsid {alone}; }} </dev/null >/dev/null 2>&1 &',
        _stdin=build.connector_arguments["_stdin"],
    )


def name(lock: str, python: str | None = None, torch_backend: str | None = None) -> str:
    """Name of the environment of a lock's text: 16 digits of a hash over it, Python, uv, and PyTorch's index."""
    parts = (lock, python or "", UV_VERSION, *([torch_backend] if torch_backend else []))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def lock_text(requirements: str | Path) -> str:
    """The text of a lock, given as a file of the controller or as the text itself."""
    if isinstance(requirements, Path) or "\n" not in requirements:
        return Path(requirements).read_text()
    return requirements


def _old(now: EnvironmentsState, wanted: str) -> list[str]:
    """What is neither wanted nor the one before: that is the current one, or the newest other."""
    others = [item for item in now.complete if item != wanted]
    before = now.current if now.current in others else next(iter(others), None)
    return [item for item in others if item != before] + sorted(now.incomplete - {wanted})


def remove(path: str, names: Iterable[str]) -> str:
    """The command that removes environments: their stamps first, or half of one would count as whole."""
    quoted = [shlex.quote(name) for name in names]
    stamps = " ".join(f"{name}/{STAMP}" for name in quoted)
    return f"cd {shlex.quote(path)} && rm -f -- {stamps} && rm -rf -- {' '.join(quoted)}"


def _build(target: str, lock: str, interpreter: str, build: bool, torch_backend: str | None) -> StringCommand:
    hashes = " --require-hashes" if "--hash=" in lock else ""
    wheels = "" if build else " --no-build"
    target, interpreter = shlex.quote(target), shlex.quote(interpreter)
    # The indexes may hold a password, so they come on standard input, as the first lines before the lock.
    # What a run that was killed left behind may still be at it: it is waited for, not undone.
    return StringCommand(
        f"set -e; umask 022; export {_ENVIRONMENT}; IFS= read -r index; IFS= read -r torch; "
        '[ -z "$index" ] || export UV_DEFAULT_INDEX="$index"; '
        # uv's own switch knows no mirror. PyTorch's index has old versions of other packages, too: a lock names
        # what it wants of either index.
        'case $torch in "") ;; *://*) export UV_INDEX="$torch" UV_INDEX_STRATEGY=unsafe-best-match ;; '
        '*) export UV_TORCH_BACKEND="$torch" ;; esac; '
        f"mkdir -p $(dirname {CACHE}) $(dirname {target}); install -d -m 700 {CACHE}; exec 9>$(dirname {target})/.lock; flock 9; "
        f"version=$({interpreter} -V | cut -d. -f1,2); "
        f'[ -n "$version" ] || {{ echo "there is no "{interpreter}" on the host" >&2; exit 1; }}; [ "$(cat {target}/{STAMP} 2>/dev/null)" != "$version" ] || exit 0; '
        f"rm -rf -- {target}; {UV} venv --quiet --python {interpreter} {target}; cat >{target}/requirements.txt; "
        f"{UV} pip install --quiet --compile-bytecode{hashes}{wheels} "
        f"--python {target}/bin/python -r {target}/requirements.txt; "
        # uv's own lock file is for everybody to write.
        f'chmod -f go-w {target}/.lock || true; sync -f {target}; echo "$version" >{target}/{STAMP}.new; mv {target}/{STAMP}.new {target}/{STAMP}',
        _stdin=f"{_url(_settings().python_index)}\n{_torch(torch_backend)}\n{lock}",
    )


def _torch(backend: str | None) -> str:
    """The URL of PyTorch's index on a mirror, or uv's name for it; nothing where it is not wanted."""
    mirror = _url(_settings().python_torch_index)
    return f"{mirror.rstrip('/')}/{backend}" if mirror and backend else backend or ""


def _settings() -> HostSettings:
    return current().settings(HostSettings)


def _url(given: str | Secret | None) -> str:
    return secret_value(given.name) if isinstance(given, Secret) else given or ""


# uv itself


def _uv(now: EnvironmentsState):
    """Bring uv to the host, whole or not at all; its path names its version."""
    if now.uv:
        return
    report(f"{UV}: new")
    platform = _PLATFORMS.get(now.architecture)
    if platform is None:
        yield stop(f"uv: no program for the architecture {now.architecture}")
        return
    try:
        packed, digest = _program(now.architecture, platform)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        yield stop(f"uv {UV_VERSION} was not to be had on the controller: {said}")
        return
    directory = shlex.quote(os.path.dirname(UV))
    yield StringCommand(
        f"set -e; umask 022; mkdir -p {directory}; t=$(mktemp {directory}/.uv.XXXXXX); "
        "trap 'rm -f \"$t\"' EXIT; base64 -d | gzip -d >\"$t\"; "
        f'echo "{digest}  $t" | sha256sum --quiet -c; chmod 755 "$t"; sync "$t"; mv -fT "$t" {UV}',
        _stdin=base64.encodebytes(packed).decode(),
    )


def _program(architecture: str, platform: str) -> tuple[bytes, str]:
    """uv for an architecture, gzipped, and the SHA-256 of the program; kept on the controller."""
    kept = cache.directory() / f"uv-{UV_VERSION}-{architecture}.gz"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as directory:
            _download(platform, directory)
            packed = Path(directory, "uv.gz")
            packed.write_bytes(gzip.compress(Path(directory, "bin/uv").read_bytes(), mtime=0))
            packed.replace(kept)
    content = kept.read_bytes()
    return content, hashlib.sha256(gzip.decompress(content)).hexdigest()


def _download(platform: str, directory: str) -> None:
    subprocess.run(
        [
            controller_uv(), "pip", "install", "--quiet", "--no-deps", "--no-config", "--system-certs",
            "--target", directory, "--python-platform", platform, f"uv=={UV_VERSION}",
        ],
        check=True,
        capture_output=True,
        text=True,
    )  # fmt: skip


def controller_uv() -> str:
    """uv on the controller: the one beside this Python, else the one in PATH.

    Raises:
        FileNotFoundError: where there is none.
    """
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if not found:
        raise FileNotFoundError("there is no uv: run `pip install -r requirements.txt` in this environment")
    return found
