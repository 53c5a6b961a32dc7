"""Releases: a tree of files brought to a host whole, and made current by the flip of one link.

    PATH/releases/ID/     the files; with an application, .venv is a link to its environment
    PATH/current          link to releases/ID
"""

from __future__ import annotations

import base64
import hashlib
import shlex

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.release import Releases, ReleasesState
from groundwork.sources import Tree
from operations import uv
from operations.report import report


@operation()
def release(tree: Tree, path: str, keep: int = 5):
    """Make a tree the current release, and remove what is too old.

    A release is unpacked under another name and renamed, so that it is whole or not there. What a
    running process works in is never removed.

    Args:
        tree: the files.
        path: directory of the releases; it exists.
        keep: how many releases stay; environments that none of them uses are removed with them.
    """
    now = host.get_fact(Releases, path=path) or ReleasesState()
    if tree.id not in now.releases:
        report(f"{path}/releases/{tree.id}: new, {len(tree.entries)} files")
        yield _unpack(tree, path)
    if now.current != tree.id:
        report(f"{path}/current: {tree.id} (was {now.current or 'nothing'})")
        yield flip(path, tree.id)
    yield from _prune(now, tree, path, keep)


def flip(path: str, name: str) -> str:
    """The command that makes a release current; it counts as the latest deployed from then on."""
    link = f"releases/{name}"
    return (
        f"cd {shlex.quote(path)} && touch {link} && ln -sfn {link} .current.new && mv -fT .current.new current"
    )


def _unpack(tree: Tree, path: str) -> StringCommand:
    digest = hashlib.sha256(tree.tar).hexdigest()
    return StringCommand(
        f"set -e; umask 022; cd {shlex.quote(path)}; mkdir -p releases; rm -rf releases/.new.* releases/.old.*; "
        "t=$(mktemp -d releases/.new.XXXXXX); trap 'rm -rf \"$t\"' EXIT; "
        'base64 -d | gzip -d >"$t/tar"; '
        f'echo "{digest}  $t/tar" | sha256sum --quiet -c; mkdir "$t/tree"; '
        'tar -x --no-same-owner --no-same-permissions -f "$t/tar" -C "$t/tree"; '
        f'sync -f "$t"; mv -T "$t/tree" releases/{tree.id}',
        _stdin=base64.encodebytes(tree.packed).decode(),
    )


def _prune(now: ReleasesState, tree: Tree, path: str, keep: int):
    before = [name for name in now.releases if name not in (tree.id, now.current)]
    order = [tree.id, *([now.current] if now.current not in (None, tree.id) else []), *before]
    old = [name for name in order[keep:] if name not in now.used]
    if old:
        report(f"{path}: removing {len(old)} old release{'s' * (len(old) > 1)}: {', '.join(old)}")
        # Renamed first: what is half removed must not be taken for a release.
        yield (
            f"cd {shlex.quote(path)}/releases && for name in {' '.join(map(shlex.quote, old))}; do "
            'rm -rf -- ".old.$name" && mv -T -- "$name" ".old.$name"; done && rm -rf -- .old.*'
        )
    needed = {now.releases[name] for name in now.releases if name not in old} | {_environment(tree)}
    if unused := sorted(now.environments - needed):
        report(f"{path}: removing environments that no release uses: {', '.join(unused)}")
        yield uv.remove(f"{path}/environments", unused)


def _environment(tree: Tree) -> str:
    link = tree.entries.get(".venv")
    return (link.target or "").rsplit("/", 1)[-1] if link else ""
