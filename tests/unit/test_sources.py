"""What is deployed: the same files give the same release, and what must not travel does not."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile

import pytest

from groundwork import locks
from groundwork.sources import SourceError, Tree, _cause, shown, tree


def members(found: Tree) -> dict[str, tarfile.TarInfo]:
    return {member.name: member for member in tarfile.open(fileobj=io.BytesIO(found.tar))}


def git(directory, *arguments: str) -> str:
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    return subprocess.check_output(["git", "-C", str(directory), *identity, *arguments], text=True).strip()


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source/package").mkdir(parents=True)
    (tmp_path / "source/package/main.py").write_text("app = 1\n")
    (tmp_path / "source/run").write_text("#!/bin/sh\n")
    (tmp_path / "source/run").chmod(0o755)
    tree.cache_clear()
    return tmp_path / "source"


def test_the_same_files_give_the_same_release(source):
    before = tree(str(source)).id
    os.utime(source / "run", (0, 0))
    tree.cache_clear()
    assert tree(str(source)).id == before
    (source / "run").write_text("#!/bin/bash\n")
    tree.cache_clear()
    assert tree(str(source)).id != before


def test_a_file_keeps_its_time_until_its_content_changes(source):
    before = members(tree(str(source)))
    (source / "package/main.py").write_text("app = 2\n")
    tree.cache_clear()
    after = members(tree(str(source)))
    assert after["run"].mtime == before["run"].mtime
    assert after["package/main.py"].mtime != before["package/main.py"].mtime
    assert after["run"].mode == 0o755 and after["package/main.py"].mode == 0o644


def test_no_caches_and_no_developers_secrets_are_deployed(source):
    for name in (".venv/lib", "__pycache__", "node_modules/x"):
        (source / name).mkdir(parents=True)
        (source / name / "file").write_text("x")
    (source / ".env").write_text("SECRET=1")
    (source / "package/old.pyc").write_text("x")
    assert set(tree(str(source)).entries) == {"package/main.py", "run"}


def test_of_a_work_tree_what_git_ignores_stays(source):
    git(source, "init", "-q")
    (source / ".gitignore").write_text("*.log\n")
    (source / "run.log").write_text("x")
    (source / "new.py").write_text("x")
    git(source, "add", "run")
    assert set(tree(str(source)).entries) == {".gitignore", "new.py", "package/main.py", "run"}


def test_a_link_out_of_the_source_is_refused(source):
    (source / "key").symlink_to("/etc/shadow")
    with pytest.raises(SourceError, match="outside"):
        tree(str(source))


def test_a_revision_of_a_repository(source, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    git(source, "init", "-q", "-b", "main")
    git(source, "add", ".")
    git(source, "commit", "-qm", "one")
    git(source, "tag", "-a", "v1", "-m", "one")
    first = git(source, "rev-parse", "HEAD")
    (source / "two.py").write_text("2")
    git(source, "add", ".")
    git(source, "commit", "-qm", "two")
    url = f"file://{source}"
    assert "two.py" in tree(url, "main").entries
    assert "two.py" in tree(url).entries
    assert tree(url, "v1").id == tree(url, first).id != tree(url, "main").id
    with pytest.raises(SourceError, match="no branch or tag 'nope'"):
        tree(url, "nope")


def test_a_password_in_a_url_is_not_shown():
    assert shown("fatal: https://me:secret@example.org/x.git failed") == "fatal: https://***@example.org/x.git failed"


def test_the_names_in_a_lock():
    lock = "Uvicorn_Worker==0.4.0 \\\n    --hash=sha256:00\n# gunicorn\nfastapi[all]==1 ; python_version < '3.11'\n"
    assert locks.names(lock) == {"uvicorn-worker", "fastapi"}


@pytest.mark.parametrize("line", ["-r base.txt", "-e .", "./wheels/x.whl", "--constraint c.txt"])
def test_a_lock_that_needs_other_files_is_refused(source, line):
    (source / "requirements.txt").write_text(f"fastapi==1\n{line}\n")
    with pytest.raises(SourceError, match="one lock"):
        locks.of_tree(tree(str(source)), None)


def test_no_lock_is_refused(source):
    with pytest.raises(SourceError, match="neither"):
        locks.of_tree(tree(str(source)), None)


def test_what_is_not_pinned_is_no_lock(source):
    lock = "# of us\n--index-url https://example.org/simple\nfastapi==1.0 \\\n    --hash=sha256:00\nuvicorn[standard] == 2.0 ; python_version < '3.12'  # via us\npkg @ https://example.org/pkg.whl\n"
    (source / "requirements.txt").write_text(lock)
    assert locks.of_tree(tree(str(source)), None) == lock
    (source / "loose.txt").write_text(lock + "gunicorn\nredis>=5,<6\nhttpx==0.*\npymongo~=4.0\nrich\n")
    tree.cache_clear()
    with pytest.raises(SourceError, match=r"loose.txt is no lock.* gunicorn, redis>=5,<6, httpx==0.\* and 2 more"):
        locks.of_tree(tree(str(source)), "loose.txt")


@pytest.mark.parametrize(
    "words, cause",
    [
        (
            "Warning: Permanently added 'git' to the list of known hosts.\ngit@git: Permission denied (publickey).\n"
            "fatal: Could not read from remote repository.\n\nPlease make sure you have the correct access rights\n"
            "and the repository exists.",
            "git@git: Permission denied (publickey).; fatal: Could not read from remote repository.",
        ),
        ("fatal: repository 'x' does not exist\nhint: look again", "fatal: repository 'x' does not exist"),
        ("error: RPC failed\nfatal: early EOF\nfatal: bad pack", "error: RPC failed; fatal: early EOF"),
        ("", "(nothing)"),
    ],
)
def test_of_gits_words_the_cause_is_told(words, cause):
    assert _cause(words) == cause
