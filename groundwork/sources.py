"""What is deployed from the controller: a directory, or a commit of a git repository, as a tree of files.

The same files give the same bytes, and so the same release id, on every controller.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import os
import re
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Iterator

from groundwork import AGENT, ROOT, cache

GIT_SECONDS = 120
"""Seconds that git may take to fetch a commit."""

_NOT_SOURCE = {
    ".git", ".hg", ".svn", ".tox", ".nox", ".venv", "venv", "__pycache__", ".pytest_cache",
    ".mypy_cache", ".ruff_cache", "node_modules", ".DS_Store",
    ".env",  # a developer's own secrets: the application would read them in preference to ours
}  # fmt: skip
_URL = re.compile(r"^([a-z+]+://|[\w.-]+@[\w.-]+:)")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class SourceError(Exception):
    """Why a source can't be read, in one sentence."""


@dataclass(frozen=True)
class Entry:
    """A file or a symbolic link."""

    content: bytes = b""
    executable: bool = False
    target: str | None = None
    """Of a symbolic link."""


class Tree:
    """Files by their path, which is relative and has no `..`."""

    def __init__(self, entries: dict[str, Entry]):
        self.entries = dict(sorted(entries.items()))

    def text(self, path: str) -> str | None:
        """Content of a file, None where there is none."""
        entry = self.entries.get(path)
        return entry.content.decode() if entry and entry.target is None else None

    def with_link(self, path: str, target: str) -> Tree:
        """The tree with one more symbolic link."""
        return Tree({**self.entries, path: Entry(target=target)})

    @functools.cached_property
    def tar(self) -> bytes:
        """The tree as a tar archive, the same for the same files."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for path, entry in self.entries.items():
                archive.addfile(_member(path, entry), io.BytesIO(entry.content))
        return buffer.getvalue()

    @functools.cached_property
    def id(self) -> str:
        """16 digits of a hash over the tree: the release's name."""
        return hashlib.sha256(self.tar).hexdigest()[:16]

    @functools.cached_property
    def packed(self) -> bytes:
        """The archive, gzipped."""
        return gzip.compress(self.tar, compresslevel=6, mtime=0)


def _member(path: str, entry: Entry) -> tarfile.TarInfo:
    member = tarfile.TarInfo(path)
    if entry.target is not None:
        member.type, member.linkname = tarfile.SYMTYPE, entry.target
        return member
    member.size = len(entry.content)
    member.mode = 0o755 if entry.executable else 0o644
    # A web server's ETag is made of size and time. A time made of the content (between 2000 and 2017)
    # keeps it for a file that did not change, and never lets two contents share one.
    digest = hashlib.sha256(entry.content).digest()
    member.mtime = 946684800 + int.from_bytes(digest[:4], "big") // 8
    return member


@functools.cache
def tree(source: str, revision: str = "HEAD") -> Tree:
    """The files of a source; read once in a process.

    Args:
        source: a directory, absolute or relative to the repository, or the URL of a git repository.
        revision: of a git repository: a branch, a tag, or a full commit.
    Raises:
        SourceError: when it can't be read.
    """
    entries = _git(source, revision) if _URL.match(source) else _directory(ROOT / source)
    found = Tree(dict(entries))
    if not found.entries:
        raise SourceError(f"there is no file in {source}")
    return found


# A directory


def _directory(root: Path) -> Iterator[tuple[str, Entry]]:
    if not root.is_dir():
        raise SourceError(f"{root} is not a directory")
    listed = _listed(root)
    for path in _walked(root) if listed is None else listed:
        full = root / path
        if full.is_symlink():
            yield path, Entry(target=_inside(root, full))
        elif full.is_dir():
            raise SourceError(f"{full} is a repository of its own (a submodule?), which can't be deployed")
        elif full.is_file():
            yield path, Entry(full.read_bytes(), os.access(full, os.X_OK))


def _inside(root: Path, link: Path) -> str:
    target = os.readlink(link)
    if os.path.isabs(target) or not link.resolve().is_relative_to(root.resolve()):
        raise SourceError(f"{link} is a link to {target}, outside of what is deployed")
    return target


def _in_work_tree(root: Path) -> bool:
    try:
        return _run("git", "-C", str(root), "rev-parse", "--is-inside-work-tree").strip() == b"true"
    except SourceError:
        return False


def _listed(root: Path) -> Iterable[str] | None:
    """What git tracks, and what it neither tracks nor ignores; None where there is no work tree of git's."""
    try:
        listed = _run("git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    except SourceError:
        if _in_work_tree(root):
            raise
        return None
    return dict.fromkeys(os.fsdecode(path).rstrip("/") for path in listed.split(b"\0") if path)


def _walked(root: Path) -> Iterator[str]:
    for directory, names, files in os.walk(root):
        links = [name for name in names if os.path.islink(os.path.join(directory, name))]
        names[:] = [name for name in names if name not in _NOT_SOURCE and name not in links]
        for name in files + links:
            if name not in _NOT_SOURCE and not name.endswith(".pyc"):
                yield str(Path(directory, name).relative_to(root))


# A git repository


def _git(url: str, revision: str) -> Iterator[tuple[str, Entry]]:
    commit = revision if _COMMIT.fullmatch(revision) else _resolved(url, revision)
    kept = cache.directory() / "git" / hashlib.sha256(url.encode()).hexdigest()[:16]
    if not (kept / "HEAD").exists():
        _run("git", "init", "--quiet", "--bare", str(kept))
    git = ("git", "-C", str(kept))
    try:
        _run(*git, "cat-file", "-e", f"{commit}^{{commit}}")
    except SourceError:
        _fetch(git, url, commit)
    yield from _unpacked(_run(*git, "archive", "--format=tar", commit))


def _resolved(url: str, revision: str) -> str:
    """The commit that a branch or tag names in the repository."""
    listed = _run("git", "ls-remote", "--", url).decode()
    commits = {ref: commit for commit, ref in (line.split("\t") for line in listed.splitlines())}
    # An annotated tag is an object of its own: ^{} is the commit that it names.
    for form in ("refs/heads/{}", "refs/tags/{}^{{}}", "refs/tags/{}", "{}"):
        if commit := commits.get(form.format(revision)):
            return commit
    raise SourceError(f"{shown(url)} has no branch or tag {revision!r} (a commit is given by all its 40 digits)")


def _fetch(git: tuple[str, ...], url: str, commit: str) -> None:
    try:
        _run(*git, "fetch", "--quiet", "--depth=1", "--", url, commit)
    except SourceError:  # a server may refuse to give a commit by its digits
        _run(*git, "fetch", "--quiet", "--tags", "--", url, "+refs/heads/*:refs/heads/*")


def _unpacked(archive: bytes) -> Iterator[tuple[str, Entry]]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        for member in members:
            if member.issym():
                inside = os.path.normpath(os.path.join(os.path.dirname(member.name), member.linkname))
                if member.linkname.startswith("/") or inside.startswith(".."):
                    raise SourceError(f"{member.name} is a link to {member.linkname}, outside of what is deployed")
                yield member.name, Entry(target=member.linkname)
            elif member.isfile():
                content = members.extractfile(member)
                yield member.name, Entry(content.read() if content else b"", bool(member.mode & 0o100))


def _run(*command: str) -> bytes:
    """Output of a command that asks nobody for a password.

    Raises:
        SourceError: with what it said.
    """
    ours = {name: value for name, value in os.environ.items() if name != "SSH_AUTH_SOCK"} | ({"SSH_AUTH_SOCK": AGENT} if AGENT else {})
    environment = {"GIT_SSH_COMMAND": "ssh -o BatchMode=yes", **ours, "GIT_TERMINAL_PROMPT": "0"}
    try:
        with tempfile.TemporaryFile() as said:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=said, env=environment, timeout=GIT_SECONDS
            )
            said.seek(0)
            words = said.read().decode(errors="replace").strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SourceError(f"{command[0]} could not be run: {shown(str(error))}") from None
    if done.returncode:
        raise SourceError(f"git says: {shown(_cause(words))}")
    return done.stdout


def _cause(words: str) -> str:
    """What matters of git's words: ssh's, which come first, and the first fatal line; no advice after it."""
    said = []
    for line in filter(None, map(str.strip, words.splitlines())):
        if not line.lower().startswith(("warning:", "hint:")):
            said.append(line)
        if line.startswith("fatal:"):
            break
    return "; ".join(said[-3:]) or "(nothing)"


def shown(text: str) -> str:
    """A text without the passwords of URLs in it."""
    return re.sub(r"//[^/@\s]+@", "//***@", text)
