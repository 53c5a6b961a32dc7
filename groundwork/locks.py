"""The lock of a Python application: what shall be in its environment."""

from __future__ import annotations

import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from groundwork.sources import SourceError, Tree

_NAME = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)", re.M)
_PINNED = re.compile(r"===?\s*[^\s*,]+$|\s@\s*\S+")
_LOCAL = re.compile(r"^(-r|-c|-e|--requirement|--constraint|--editable|\.{0,2}/|\.$|file:)", re.M)


def of_tree(tree: Tree, name: str | None, setting: str = "app_requirements") -> str:
    """The lock in a tree, as the text of a requirements file.

    Args:
        name: path of the lock in the tree; by default requirements.txt, else uv.lock.
        setting: what names another, for the message.
    Raises:
        SourceError: when there is none, or it can't be used.
    """
    found = name or next((item for item in ("requirements.txt", "uv.lock") if tree.text(item)), None)
    if found is None:
        raise SourceError(f"neither requirements.txt nor uv.lock is in the source; {setting} names another")
    text = tree.text(found)
    if text is None:
        raise SourceError(f"{found} is not in the source")
    if found.rsplit("/", 1)[-1] == "uv.lock":
        text = _exported(tree.text(found.replace("uv.lock", "pyproject.toml")) or "", text)
    if wrong := _wrong(found, text):
        raise SourceError(wrong)
    return text


@cache
def _wrong(found: str, text: str) -> str:
    """What makes a lock none; empty where nothing does. All hosts of a program have the same."""
    if local := _LOCAL.search(text):
        line = text[local.start() :].splitlines()[0]
        return f"{found} names another file ({line}): make one lock of it with uv pip compile"
    if loose := unpinned(text):
        more = f" and {len(loose) - 3} more" if len(loose) > 3 else ""
        return (
            f"{found} is no lock, because it pins no version of {', '.join(loose[:3])}{more} (NAME==VERSION): "
            f"make one with uv pip compile {found} -o requirements.txt (from a requirements.in, say)"
        )
    return ""


def unpinned(lock: str) -> list[str]:
    """Requirements of a file that name no exact version and no URL, as they are written."""
    lines = (line.partition(" #")[0].strip() for line in lock.replace("\\\n", " ").splitlines())
    wanted = [line.partition(";")[0].partition(" --")[0].strip() for line in lines if line[:1] not in ("", "#", "-")]
    return [item for item in wanted if not _PINNED.search(item)]


def names(lock: str) -> set[str]:
    """Names of the packages in a lock, normalised as PEP 503 has it."""
    return {re.sub(r"[-_.]+", "-", name).lower() for name in _NAME.findall(lock)}


@cache
def _exported(project: str, lock: str) -> str:
    """What `uv sync --frozen --no-dev` would install, but for the project itself, with hashes."""
    from operations.uv import controller_uv

    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "pyproject.toml").write_text(project)
        Path(directory, "uv.lock").write_text(lock)
        try:
            done = subprocess.run(
                [controller_uv(), "export", "--quiet", "--frozen", "--no-dev", "--no-emit-workspace",
                 "--no-header", "--directory", directory],
                capture_output=True, text=True, timeout=60,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SourceError(f"uv.lock could not be read: {error}") from None
    if done.returncode:
        raise SourceError(f"uv.lock could not be read: {done.stderr.strip()}")
    return done.stdout
