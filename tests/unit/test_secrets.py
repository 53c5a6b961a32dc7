"""Secrets: with real age encryption, real file modes, and the command line in its own process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import pty
import random
import re
import select
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from copy import copy
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pyrage
import pytest
from pydantic import BaseModel, ValidationError
from pyinfra.api.exceptions import PyinfraError

from groundwork import secrets as module
from groundwork.secrets import (
    Environment,
    LabSeed,
    Secret,
    SecretError,
    SecretStore,
    generate,
    is_lab_inventory,
    variable,
)

ROOT = Path(module.__file__).parents[1]
VALUE = "hunter2-\u00e9\U0001f511 ' \" # : {"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository with a production and a lab inventory, and a home of its own, as the cwd."""
    for key in list(os.environ):
        if key.startswith("GROUNDWORK_"):
            monkeypatch.delenv(key)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GROUNDWORK_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    repository = tmp_path / "repository"
    (repository / "inventories").mkdir(parents=True)
    (repository / "lab").mkdir()
    (repository / "lab" / "__init__.py").write_text(
        "def lab_host(name, suite):\n    return (name, {'lab_suite': suite})\n"
    )
    (repository / "inventories" / "prod.py").write_text("app = ['app1']\n")
    (repository / "inventories" / "lab.py").write_text(
        "from lab import lab_host\nprint('noise')\nall = [lab_host('app1', 'noble')]\n"
    )
    monkeypatch.chdir(repository)
    return repository


@pytest.fixture
def identity(project):
    """An identity where it is looked for by default."""
    return write_identity(Path(os.environ["HOME"]) / ".config/groundwork/age.key")


def write_identity(path: Path) -> pyrage.x25519.Identity:
    made = pyrage.x25519.Identity.generate()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# a comment\n{made}\n")
    path.chmod(0o600)
    return made


def write_store(identity, payload: str | bytes, stem: str = "prod") -> Path:
    directory = Path("secrets")
    directory.mkdir(exist_ok=True)
    payload = payload.encode() if isinstance(payload, str) else payload
    (directory / f"{stem}.age").write_bytes(pyrage.encrypt(payload, [identity.to_public()]))
    (directory / f"{stem}.recipients").write_text(f"# me\n{identity.to_public()}\n")
    return directory / f"{stem}.age"


def prod() -> SecretStore:
    return SecretStore.for_inventory("inventories/prod.py", lab=False)


def lab() -> SecretStore:
    return SecretStore.for_inventory("inventories/lab.py", lab=True)


def run(*words, stdin=b"", inventory="inventories/prod.py", env=None) -> SimpleNamespace:
    """The command line, within this process, which saves its imports; stdin is a file.

    Fails on any exception, and unless an error is one line with status 1 or 2.
    """
    options = ["--inventory", inventory] if inventory else []
    out, err = io.StringIO(), io.StringIO()
    with (
        tempfile.TemporaryFile("w+b") as given,
        mock.patch.object(module, "_AGE_FILES", {}),  # as if nothing was decrypted yet
        mock.patch.dict(os.environ, env or {}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        given.write(stdin)
        given.seek(0)
        with mock.patch.object(sys, "stdin", io.TextIOWrapper(given)):
            status = module.main([*options, *words])
    result = SimpleNamespace(returncode=status, out=out.getvalue(), err=err.getvalue())
    if status:
        assert status in (1, 2)
        assert result.err.startswith("error: ") and result.err.count("\n") == 1, result.err
    return result


def terminal(*words, typed=(), inventory="inventories/prod.py") -> tuple[int, str]:
    """The command line on a pseudo-terminal of its own, answering each prompt in turn."""
    pid, master = pty.fork()
    if pid == 0:
        command = [sys.executable, "-m", "groundwork.secrets", "--inventory", inventory, *words]
        os.execv(sys.executable, command)
    output, answers = b"", list(typed)
    while True:
        if not select.select([master], [], [], 20)[0]:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            pytest.fail(f"waits for ever after {output.decode()!r}")
        try:
            chunk = os.read(master, 4096)
        except OSError:  # Linux: the other side is closed
            break
        if not chunk:
            break
        output += chunk
        if answers and output.rstrip(b" ").endswith(b":"):
            time.sleep(0.05)  # getpass flushes what was typed before it turned the echo off
            os.write(master, answers.pop(0).encode() + b"\n")
            output += b"\n"
    _, status = os.waitpid(pid, 0)
    os.close(master)
    return os.waitstatus_to_exitcode(status), output.decode()


# Names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mongodb/admin", "a/b/c", "app_1/tls.key", "x/a-b", "1/2"])
def test_a_name(name):
    secret = Secret(name)
    assert repr(secret) == str(secret) == f"{secret}" == f'Secret("{name}")'


@pytest.mark.parametrize(
    "name", ["", "mongodb", "/a", "a/", "A/b", "a/B", "a b/c", "a//b", "a-b/c", "a/b\n", None, 7]
)
def test_a_bad_name_is_refused(name):
    with pytest.raises(SecretError, match='such as "mongodb/admin"'):
        Secret(name)


def test_a_value_given_as_a_name_is_not_repeated():
    with pytest.raises(SecretError) as caught:
        Secret("Hunter2!")
    assert "Hunter2" not in str(caught.value) + repr(caught.value)


def test_a_secret_lives_in_host_data_and_settings():
    from pyinfra_cli.prints import jsonify
    from pyinfra_cli.util import json_encode

    secret = Secret("mongodb/admin")
    assert secret == Secret("mongodb/admin") != Secret("mongodb/app")
    assert {secret: 1}[Secret("mongodb/admin")] == 1
    assert copy(secret) == pickle.loads(pickle.dumps(secret)) == secret
    dumped = jsonify(
        {"data": {"a": secret, "b": {Secret("b/b"), Secret("a/a")}}}, default=json_encode
    )
    assert json.loads(dumped) == {
        "data": {"a": 'Secret("mongodb/admin")', "b": ['Secret("a/a")', 'Secret("b/b")']}
    }
    with pytest.raises(AttributeError):
        secret.name = "other/name"

    class Settings(BaseModel):
        password: Secret

    assert Settings(password=secret).password is secret
    with pytest.raises(ValidationError, match="such as"):
        Settings(password={"name": "nonsense"})


def test_an_error_is_shown_by_pyinfra_without_traceback():
    assert issubclass(SecretError, PyinfraError)


def test_the_standard_librarys_secrets_stays_importable_beside_the_folder(project):
    (project / "secrets").mkdir()
    done = subprocess.run([sys.executable, "-c", "import secrets; secrets.token_hex"], cwd=project)
    assert done.returncode == 0
    assert not (ROOT / "secrets" / "__init__.py").exists()


# Environment --------------------------------------------------------------------------------------


def test_the_variable_of_a_name():
    assert variable("mongodb/admin") == "GROUNDWORK_SECRET_MONGODB_ADMIN"
    assert variable("app_1/tls.key-2") == "GROUNDWORK_SECRET_APP_1_TLS_KEY_2"


def test_environment_alone_needs_no_file_and_no_identity(project, monkeypatch):
    monkeypatch.setenv("GROUNDWORK_SECRET_MONGODB_ADMIN", VALUE)
    assert prod().value("mongodb/admin") == prod().value(Secret("mongodb/admin")) == VALUE
    assert prod().missing(["mongodb/admin"]) == []
    assert prod().names() == []


def test_environment_does_not_decrypt_a_file_it_does_not_need(identity, monkeypatch):
    write_store(identity, "mongodb/admin: from-file").write_bytes(b"junk")
    monkeypatch.setenv("GROUNDWORK_SECRET_MONGODB_ADMIN", "from-environment")
    assert prod().value("mongodb/admin") == "from-environment"


def test_environment_comes_before_the_file(identity, monkeypatch):
    write_store(identity, "mongodb/admin: from-file")
    assert prod().value("mongodb/admin") == "from-file"
    monkeypatch.setenv("GROUNDWORK_SECRET_MONGODB_ADMIN", "from-environment")
    assert prod().value("mongodb/admin") == "from-environment"


def test_an_empty_variable_is_an_error_and_not_a_reason_to_look_further(identity, monkeypatch):
    write_store(identity, "mongodb/admin: from-file")
    monkeypatch.setenv("GROUNDWORK_SECRET_MONGODB_ADMIN", "")
    with pytest.raises(SecretError, match="GROUNDWORK_SECRET_MONGODB_ADMIN is set, but empty"):
        prod().value("mongodb/admin")


# File ---------------------------------------------------------------------------------------------


def test_the_message_for_a_missing_secret_says_all(identity):
    write_store(identity, "other/name: x")
    with pytest.raises(SecretError) as caught:
        prod().value("mongodb/admin")
    assert str(caught.value) == (
        'Secret("mongodb/admin") is neither in the environment variable '
        "GROUNDWORK_SECRET_MONGODB_ADMIN nor in secrets/prod.age; add it with "
        "`python -m groundwork.secrets --inventory inventories/prod.py add mongodb/admin`"
    )


def test_the_message_without_a_file_starts_with_init(project):
    with pytest.raises(SecretError) as caught:
        prod().value("mongodb/admin")
    assert "secrets/prod.age (no such file)" in str(caught.value)
    assert re.search(r"`[^`]* init`, then `[^`]* add mongodb/admin`", str(caught.value))


def test_missing_tells_all_at_once(identity, monkeypatch):
    write_store(identity, "a/there: x\na/lab: lab-x\n")
    monkeypatch.setenv("GROUNDWORK_SECRET_A_EMPTY", "")
    names = ["z/not", "a/there", "a/lab", "a/empty", Secret("a/not"), "a/not", "Nonsense"]
    messages = prod().missing(names)
    assert len(messages) == 4
    for part in (
        "a/not, z/not: neither in .*A_NOT, …. nor in secrets/prod.age",
        "a/lab.*lab secret",
        "A_EMPTY.*empty",
        "by its name",
    ):
        assert sum(bool(re.search(part, message)) for message in messages) == 1, part


def test_missing_says_what_to_type(identity):
    names = ["app/dsn", "redis/app", "redis/admin"]
    command = "      python -m groundwork.secrets --inventory inventories/prod.py"
    add = [f"{command} add --generate redis/admin redis/app    # random values", f"{command} add app/dsn    # asks for the value; of a file: … <FILE"]
    (message,) = prod().missing(names, random=["redis/app", "redis/admin", "mongodb/admin"])
    assert message.splitlines()[1:] == [f"{command} init", *add]
    write_store(identity, "a/a: x")
    (message,) = prod().missing(names, random=["redis/app", "redis/admin"])
    assert message.splitlines()[1:] == add


def test_missing_tells_a_sources_trouble_once(identity):
    write_store(pyrage.x25519.Identity.generate(), "a/a: x")
    messages = prod().missing(["a/a", "b/b"])
    assert len(messages) == 1
    assert "not encrypted to your identity" in messages[0]
    assert "needed for a/a, b/b" in messages[0]


def test_names(identity):
    write_store(identity, "b/b: x\na/a: y")
    assert prod().names() == ["a/a", "b/b"]


@pytest.mark.parametrize("armored", [True, False])
def test_both_forms_of_age_are_read(identity, armored):
    path = write_store(identity, "")
    path.write_bytes(pyrage.encrypt(b"a/a: x", [identity.to_public()], armored=armored))
    assert prod().value("a/a") == "x"


def test_scalars_stay_as_written(identity):
    write_store(identity, "a/a: 007\na/b: yes\na/c: 1.0\na/d: 2026-11-23")
    assert [prod().value(f"a/{x}") for x in "abcd"] == ["007", "yes", "1.0", "2026-11-23"]


def test_an_ssh_key_is_an_identity_too(project, monkeypatch, tmp_path):
    key = tmp_path / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    recipient = pyrage.ssh.Recipient.from_str(Path(f"{key}.pub").read_text())
    Path("secrets").mkdir()
    Path("secrets/prod.age").write_bytes(pyrage.encrypt(b"a/a: x", [recipient]))
    monkeypatch.setenv("GROUNDWORK_AGE_IDENTITY", str(key))
    assert prod().value("a/a") == "x"


def test_an_ssh_key_with_a_passphrase_is_refused(project, monkeypatch, tmp_path):
    key = tmp_path / "id_ed25519"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "hunter2", "-f", str(key)], check=True
    )
    write_store(pyrage.x25519.Identity.generate(), "a/a: x")
    monkeypatch.setenv("GROUNDWORK_AGE_IDENTITY", str(key))
    with pytest.raises(SecretError, match="without passphrase"):
        prod().value("a/a")


def test_the_file_is_decrypted_once_per_process(identity, monkeypatch):
    write_store(identity, "a/a: x\nb/b: y")
    calls = []
    decrypt = pyrage.decrypt

    def slowly(*arguments):
        calls.append(arguments)
        time.sleep(0.05)
        return decrypt(*arguments)

    monkeypatch.setattr(module.pyrage, "decrypt", slowly)
    prod()
    assert calls == []
    found = []
    threads = [threading.Thread(target=lambda: found.append(prod().value("a/a"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["x"] * 8
    assert prod().missing(["a/a", "b/b", "c/c"])
    assert len(calls) == 1


def test_greenlets_share_one_decryption_too(identity):
    write_store(identity, "a/a: x")
    code = """
import pyinfra_cli, gevent, pyrage, threading
from groundwork.secrets import SecretStore
calls, decrypt = [], pyrage.decrypt
def slowly(*arguments):
    calls.append(1); gevent.sleep(0.05); return decrypt(*arguments)
pyrage.decrypt = slowly
ask = lambda: SecretStore.for_inventory("inventories/prod.py", lab=False).value("a/a")
jobs = [gevent.spawn(ask) for _ in range(8)]
gevent.joinall(jobs, timeout=10)
print([job.value for job in jobs] == ["x"] * 8, len(calls))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True 1\n", done.stderr


def test_the_lock_is_free_at_once_under_gevent_too(project):
    code = """
import pyinfra_cli, fcntl, gevent, os, pathlib
from groundwork.secrets import _locked
gevent.sleep(0)
with _locked(pathlib.Path(".")):
    second = os.open(".", os.O_RDONLY)
    try:
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("held")
fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("free")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "held\nfree\n", done.stderr


# What is refused ----------------------------------------------------------------------------------


def identity_file() -> Path:
    return module.identity_path()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o620])
def test_an_identity_open_to_others_is_refused(identity, mode):
    write_store(identity, "a/a: x")
    identity_file().chmod(mode)
    with pytest.raises(SecretError) as caught:
        prod().value("a/a")
    assert f"mode {mode:04o}" in str(caught.value)
    assert f"`chmod 600 {identity_file()}`" in str(caught.value)
    identity_file().chmod(0o600)
    assert prod().value("a/a") == "x"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_an_identity_of_somebody_else_is_refused(identity):
    write_store(identity, "a/a: x")
    os.chown(identity_file(), 65534, -1)
    with pytest.raises(SecretError, match="belongs to user id 65534"):
        prod().value("a/a")


@pytest.mark.parametrize("linked", [False, True])
def test_an_identity_within_the_repository_is_refused(project, monkeypatch, tmp_path, linked):
    inside = project / "deep" / "age.key"
    write_store(write_identity(inside), "a/a: x")
    link = tmp_path / "age.key"
    link.symlink_to(inside)
    monkeypatch.setenv("GROUNDWORK_AGE_IDENTITY", str(link if linked else inside))
    with pytest.raises(SecretError, match="within the repository"):
        prod().value("a/a")


def test_the_repository_is_the_whole_work_tree(tmp_path, project, monkeypatch):
    (tmp_path / ".git").mkdir()
    write_store(write_identity(tmp_path / "age.key"), "a/a: x")
    monkeypatch.setenv("GROUNDWORK_AGE_IDENTITY", str(tmp_path / "age.key"))
    with pytest.raises(SecretError, match="within the repository"):
        prod().value("a/a")


def test_a_missing_identity(project):
    write_store(pyrage.x25519.Identity.generate(), "a/a: x")
    with pytest.raises(SecretError) as caught:
        prod().value("a/a")
    assert f"no age identity {identity_file()}" in str(caught.value)
    assert "GROUNDWORK_AGE_IDENTITY" in str(caught.value)
    assert "GROUNDWORK_SECRET_A_A" in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"# nothing\n", b"AGE-SECRET-KEY-1NONSENSE", b"\xff\xfe\x00"]
)
def test_an_identity_that_is_none(identity, content):
    write_store(identity, "a/a: x")
    identity_file().write_bytes(content)
    with pytest.raises(SecretError, match="holds no identity") as caught:
        prod().value("a/a")
    assert "NONSENSE" not in str(caught.value)


def test_the_wrong_identity(identity):
    write_store(pyrage.x25519.Identity.generate(), "a/a: x")
    with pytest.raises(SecretError, match="not encrypted to your identity.*prod.recipients.*rekey"):
        prod().value("a/a")


def test_a_damaged_file(identity):
    path = write_store(identity, "a/a: x")
    whole = path.read_bytes()
    damaged = [
        b"",
        b"junk",
        whole[:-1],
        whole[:-1] + bytes([whole[-1] ^ 1]),
        whole[: len(whole) // 2],
    ]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(SecretError, match="damaged.*version control"):
            prod().value("a/a")
    path.write_bytes(whole)
    assert prod().value("a/a") == "x"


@pytest.mark.parametrize(
    "payload, text",
    [
        ("a/a: [hunter2", "YAML mapping"),
        ("a/a: 'hunter2", "YAML mapping"),
        ("hunter2", "YAML mapping"),
        ("- hunter2", "YAML mapping"),
        ("", "YAML mapping"),
        (b"a/a: hunter2\xff", "YAML mapping"),
        ("? [hunter2]\n: a/a", "YAML mapping"),
        ("hunter2: a/a", "entry 1 has no valid name"),
        ("a/b: x\nhunter2: a/a", "entry 2 has no valid name"),
        ("a/a: {b: hunter2}", "the value of a/a must be text"),
        ("a/a: [hunter2]", "the value of a/a must be text"),
        ("a/a:\nb/b: hunter2", "the value of a/a must be text, and not empty"),
    ],
)
def test_a_bad_payload_is_refused_and_not_shown(identity, payload, text):
    write_store(identity, payload)
    with pytest.raises(SecretError) as caught:
        prod().value("a/a")
    assert "secrets/prod.age" in str(caught.value)
    assert text in str(caught.value)
    error: BaseException | None = caught.value
    seen = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    while error:  # also what `from None` only hides
        seen += repr(error)
        error = error.__context__
    assert "hunter2" not in seen


def test_no_value_in_any_repr(identity):
    write_store(identity, "a/a: hunter2")
    store = prod()
    store.value("a/a")
    for thing in (store, store.file, store.sources, Secret("a/a"), Environment(), LabSeed()):
        assert "hunter2" not in repr(thing) + str(thing)


# Lab ----------------------------------------------------------------------------------------------


def test_lab_values_are_generated_from_a_seed(project, tmp_path):
    value = lab().value("mongodb/admin")
    assert re.fullmatch(r"lab-[A-Za-z0-9_-]{32,}", value)
    assert lab().value("mongodb/admin") == value != lab().value("mongodb/app")
    seed = tmp_path / "cache" / "secret.seed"
    assert stat.S_IMODE(seed.stat().st_mode) == 0o600 and len(seed.read_bytes()) == 32
    assert os.listdir(seed.parent) == ["secret.seed"]
    seed.unlink()
    assert lab().value("mongodb/admin") != value
    assert lab().missing(["any/name"]) == [] and lab().names() == []


def test_lab_value_is_the_hmac_of_the_name(project, tmp_path):
    (tmp_path / "cache").mkdir()
    seed = tmp_path / "cache" / "secret.seed"
    seed.touch(0o600)
    seed.write_bytes(bytes(32))
    # printf mongodb/admin | openssl dgst -sha256 -mac HMAC -macopt hexkey:0000… -binary | basenc
    assert lab().value("mongodb/admin") == "lab-Ra4ZPCY-6YBMVNsOQRk9o2fCWcwJvb_IgZtU0QdxiAs"


def test_two_processes_make_one_seed(project):
    code = "from groundwork.secrets import *; print(LabSeed().get('a/a'))"
    jobs = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(6)
    ]
    assert len({job.communicate(timeout=60)[0] for job in jobs}) == 1


def test_a_seed_made_meanwhile_is_left_alone(project, monkeypatch, tmp_path):
    value = lab().value("a/a")
    LabSeed()._make()
    assert lab().value("a/a") == value
    assert os.listdir(tmp_path / "cache") == ["secret.seed"]


def test_a_seed_open_to_others_or_cut_is_refused(project, tmp_path):
    lab().value("a/a")
    seed = tmp_path / "cache" / "secret.seed"
    seed.chmod(0o644)
    assert "mode 0644" in lab().missing(["a/a", "b/b"])[0]
    seed.chmod(0o600)
    seed.write_bytes(b"short")
    with pytest.raises(SecretError, match="32 bytes"):
        lab().value("a/a")


def test_environment_overrides_the_lab(project, monkeypatch):
    monkeypatch.setenv("GROUNDWORK_SECRET_A_A", "mine")
    assert lab().value("a/a") == "mine"


def test_a_lab_value_is_refused_elsewhere(identity, monkeypatch):
    value = lab().value("a/a")
    write_store(identity, f"a/a: {value}\nb/b: fine")
    with pytest.raises(
        SecretError, match="secrets/prod.age holds a lab secret in a production inv"
    ) as caught:
        prod().value("a/a")
    assert value not in str(caught.value)
    monkeypatch.setenv("GROUNDWORK_SECRET_B_B", value)
    with pytest.raises(SecretError, match="variable GROUNDWORK_SECRET_B_B holds a lab secret"):
        prod().value("b/b")
    assert len(prod().missing(["a/a", "b/b"])) == 2
    assert lab().value("b/b") == value


@pytest.mark.parametrize(
    "source, expected",
    [
        ("x = [('a', {'lab_suite': 'noble'})]", True),
        ("x = ['a', ('b', {'lab_suite': 'noble'})]", True),
        ("x = ([('b', {'lab_suite': 'noble'})], {})", True),
        ("x = (['b'], {'lab_suite': 'noble'})", True),
        ("from lab import lab_host\nx = [lab_host('a', 'noble')]", True),
        (
            "x = ['lab_suite', ('a', {'label': 1}), ('lab', 1)]\ny = {'lab_suite': 1}\nz = 'lab'",
            False,
        ),
        ("def lab():\n    return [('a', {'lab_suite': 'noble'})]", False),
        ("raise SystemExit('not run, since the word is not in it')", False),
    ],
)
def test_is_lab_inventory(project, source, expected):
    path = project / "inventories" / "some.py"
    path.write_text(source)
    before = list(sys.path)
    sys.modules.pop("lab", None)
    try:
        assert is_lab_inventory(path) is expected
    finally:
        sys.modules.pop("lab", None)
    assert sys.path == before


def test_an_inventory_that_does_not_run_or_is_not_there(project):
    with pytest.raises(SecretError, match="no inventory file inventories/no.py"):
        is_lab_inventory("inventories/no.py")
    Path("inventories/bad.py").write_text("import lab_nonsense")
    with pytest.raises(SecretError, match="bad.py doesn't run.*ModuleNotFoundError"):
        is_lab_inventory("inventories/bad.py")
    Path("inventories/bad.py").write_text("lab = 1; raise SystemExit(3)")
    with pytest.raises(SecretError, match="SystemExit: 3"):
        is_lab_inventory("inventories/bad.py")


# Writing ------------------------------------------------------------------------------------------


def test_any_text_survives(identity):
    write_store(identity, "{}")
    chance = random.Random(1)
    special = "\n\r\t\x01\x7f\x85\u2028\ufeff :#'\"\\{}[]&*!|>%@`-?,=~0ay\u00e9\U0001f511"
    values = {
        f"a/{number}": "".join(chance.choices(special, k=chance.randint(1, 200)))
        for number in range(300)
    }
    prod().file.write(values)
    assert prod().file.read() == values
    assert all(prod().value(name) == value for name, value in values.items())


def test_a_crash_while_writing_leaves_the_old_file(identity, monkeypatch):
    path = write_store(identity, "a/a: x")
    before = path.read_bytes()

    def crash(*arguments):
        raise KeyboardInterrupt

    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, crash)
            with pytest.raises(KeyboardInterrupt):
                prod().file.write({"a/a": "y"})
        assert path.read_bytes() == before
        assert sorted(os.listdir("secrets")) == ["prod.age", "prod.recipients"]


def test_only_ciphertext_reaches_the_disk(identity, monkeypatch):
    write_store(identity, "{}")
    written = []
    temporary = module._write_temporary
    monkeypatch.setattr(
        module,
        "_write_temporary",
        lambda d, content: written.append(content) or temporary(d, content),
    )
    prod().file.write({"a/a": "hunter2"})
    assert len(written) == 1 and b"hunter2" not in written[0]
    assert stat.S_IMODE(Path("secrets/prod.age").stat().st_mode) == 0o600
    assert prod().value("a/a") == "hunter2"


def test_what_was_written_is_what_is_read_next(identity):
    write_store(identity, "a/a: old")
    store = prod()
    assert store.value("a/a") == "old"
    store.file.write({"a/a": "new"})
    assert store.value("a/a") == "new"


def test_nobody_locks_himself_out(identity):
    path = write_store(identity, "a/a: x")
    other = pyrage.x25519.Identity.generate().to_public()
    Path("secrets/prod.recipients").write_text(f"{other}\n")
    before = path.read_bytes()
    with pytest.raises(SecretError, match=f"add {identity.to_public()}"):
        prod().file.write({"a/a": "y"})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "line, text",
    [
        ("nonsense", "line 2 is not a public key"),
        ("ssh-ed25519 nonsense", "line 2 is not a public key"),
        (str(pyrage.x25519.Identity.generate()), "line 2 is a private key"),
        ("# only a comment", "lists no public key"),
    ],
)
def test_bad_recipients(identity, line, text):
    write_store(identity, "a/a: x")
    Path("secrets/prod.recipients").write_text(f"# me\n{line}\n")
    with pytest.raises(SecretError, match=text) as caught:
        prod().file.write({"a/a": "y"})
    assert line not in str(caught.value)


def test_generated_values():
    values = {generate() for _ in range(500)}
    assert len(values) == 500
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{31}", value) for value in values)


# Command line -------------------------------------------------------------------------------------


def test_from_zero(project):
    done = run("init")
    assert done.returncode == 0, done.err
    key = identity_file()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    assert sorted(os.listdir("secrets")) == ["prod.age", "prod.recipients"]
    assert "AGE-SECRET-KEY" not in Path("secrets/prod.recipients").read_text() + done.out
    assert run("list").out.startswith("(no secrets yet)")

    done = run("add", "mongodb/admin", stdin=f"{VALUE}\n".encode())
    assert done.returncode == 0 and VALUE not in done.out + done.err
    assert prod().value("mongodb/admin") == VALUE
    assert run("list").out.startswith("mongodb/admin\n")
    again = run("init")
    assert again.returncode == 0 and "you can read it" in again.out
    assert run("list").out.startswith("mongodb/admin\n")


def test_init_keeps_an_identity_and_recipients_that_are_there(identity):
    other = pyrage.x25519.Identity.generate()
    Path("secrets").mkdir()
    Path("secrets/prod.recipients").write_text(f"# a colleague\n{other.to_public()}\n")
    before = identity_file().read_bytes()
    assert run("init").returncode == 0
    assert identity_file().read_bytes() == before
    for one in (identity, other):
        assert pyrage.decrypt(Path("secrets/prod.age").read_bytes(), [one])
    text = Path("secrets/prod.recipients").read_text()
    assert text.startswith("# a colleague\n") and str(identity.to_public()) in text


def test_init_adds_your_key_once(identity):
    path = write_store(identity, "{}")
    path.unlink()
    before = Path("secrets/prod.recipients").read_text()
    assert run("init").returncode == 0
    assert path.exists()
    assert Path("secrets/prod.recipients").read_text() == before


def test_init_makes_no_identity_within_the_repository(project):
    inside = project / "age.key"
    done = run("init", env={**os.environ, "GROUNDWORK_AGE_IDENTITY": str(inside)})
    assert done.returncode == 1 and "within the repository" in done.err
    assert not inside.exists() and not Path("secrets").exists()


def test_a_colleague_is_added(project, tmp_path):
    run("init")
    run("add", "a/a", stdin=b"x")
    theirs = {**os.environ, "HOME": str(tmp_path / "colleague")}
    done = run("init", env=theirs)
    assert done.returncode == 0 and "not for you yet" in done.out
    (key,) = re.findall(r"^age1\w+$", done.out, re.MULTILINE)
    assert run("list", env=theirs).returncode == 1
    with open("secrets/prod.recipients", "a") as file:
        file.write(f"# colleague\n{key}\n")
    assert run("rekey").returncode == 0
    shown = run("show", "a/a", "--force", env=theirs)
    assert (shown.returncode, shown.out) == (0, "x\n")
    assert key in run("list", env=theirs).out
    # And taken off again.
    lines = Path("secrets/prod.recipients").read_text().replace(key, "")
    Path("secrets/prod.recipients").write_text(lines)
    assert run("rekey").returncode == 0
    assert "not encrypted to your identity" in run("list", env=theirs).err
    assert run("list").returncode == 0


def test_init_does_not_take_a_damaged_file_for_one_of_others(project):
    run("init")
    Path("secrets/prod.age").write_bytes(b"junk")
    done = run("init")
    assert done.returncode == 1 and "damaged" in done.err


def test_add_strips_one_newline_and_keeps_many_lines(project):
    run("init")
    key = "-----BEGIN PRIVATE KEY-----\r\nabc\n\n-----END PRIVATE KEY-----\n"
    assert run("add", "tls/key", stdin=f"{key}\n".encode()).returncode == 0
    assert prod().value("tls/key") == key


@pytest.mark.parametrize(
    "stdin, text",
    [
        (b"", "the value is empty"),
        (b"\n", "the value is empty"),
        (b"a\0b", "NUL"),
        (b"\xff", "not UTF-8"),
        (b"lab-hunter2", "must not start with lab-"),
    ],
)
def test_add_refuses(project, stdin, text):
    run("init")
    done = run("add", "a/a", stdin=stdin)
    assert done.returncode == 1 and text in done.err
    assert "hunter2" not in done.err
    assert "a/a" not in run("list").out


def test_add_refuses_a_name_that_is_there(project):
    run("init")
    run("add", "a/a", stdin=b"old")
    done = run("add", "a/a", stdin=b"new")
    assert done.returncode == 1 and "rotate a/a" in done.err
    assert prod().value("a/a") == "old"


def test_add_looks_again_once_it_has_the_lock(project, monkeypatch):
    run("init")

    def meanwhile():
        prod().file.write({"a/a": "a colleague's"})
        return "mine"

    monkeypatch.setattr(module, "generate", meanwhile)
    assert "there already" in run("add", "a/a", "--generate").err
    assert prod().value("a/a") == "a colleague's"


def test_add_generate(project):
    run("init")
    done = run("add", "a/a", "--generate")
    value = prod().value("a/a")
    assert re.fullmatch(r"[A-Za-z0-9_-]{32}", value)
    assert value not in done.out + done.err


@pytest.mark.parametrize("words", [("add", "a/a", "hunter2"), ("add", "a/a", "--value=hunter2")])
def test_a_value_on_the_command_line_is_refused_and_not_repeated(project, words):
    run("init")
    done = run(*words)
    assert done.returncode == 2 and "never given on the command line" in done.err
    assert "hunter2" not in done.err + done.out
    assert "a/a" not in run("list").out


def test_add_asks_twice_without_echo(project):
    run("init")
    status, output = terminal("add", "a/a", typed=["hunter2", "hunter2"])
    assert status == 0 and "hunter2" not in output, output
    assert output.count(":") >= 2
    assert SecretStore.for_inventory("inventories/prod.py", lab=False).value("a/a") == "hunter2"


def test_add_refuses_two_different_values(project):
    run("init")
    status, output = terminal("add", "a/a", typed=["hunter2", "hunter3"])
    assert status == 1 and "differ" in output
    assert "a/a" not in run("list").out


def test_add_refuses_before_it_asks(project):
    run("init")
    run("add", "a/a", stdin=b"x")
    status, output = terminal("add", "a/a")
    assert status == 1 and "there already" in output and "Value of" not in output


def test_show_needs_a_terminal(project):
    run("init")
    run("add", "a/a", stdin=b"hunter2")
    done = run("show", "a/a")
    assert done.returncode == 1 and "--force" in done.err
    assert "hunter2" not in done.out + done.err
    assert terminal("show", "a/a") == (0, "hunter2\r\n")
    assert run("show", "a/a", "--force").out == "hunter2\n"


def test_show_of_a_lab(project):
    """Its generated values can be shown, of the secrets that its roles use; for others they would be made up."""
    host = "('app1', {'lab_suite': 'noble', 'private_address': '10.0.0.5'})"
    Path("inventories/lab.py").write_text(f"print('noise')\nmongodb = [{host}]\n")
    value = lab().value("mongodb/admin")
    status, output = terminal("show", "mongodb/admin", inventory="inventories/lab.py")
    assert (status, output.splitlines()[-1]) == (0, value)
    forced = run("show", "mongodb/admin", "--force", inventory="inventories/lab.py")
    assert forced.out == f"{value}\n" and set(forced.err.split()) == {"noise"}
    listed = run("list", inventory="inventories/lab.py")
    assert listed.returncode == 0 and listed.out.startswith("mongodb/admin\n")
    status, output = terminal("show", "mongodb/admn", inventory="inventories/lab.py")
    assert status == 1 and lab().value("mongodb/admn") not in output
    assert "no role of inventories/lab.py uses mongodb/admn; did you mean mongodb/admin? There are mongodb/admin" in output


@pytest.mark.parametrize(
    "words", [("init",), ("add", "a/a"), ("rotate", "a/a"), ("remove", "a/a"), ("rekey",)]
)
def test_a_lab_has_nothing_to_edit(project, words):
    Path("inventories/lab.py").write_text("all = [('a', {'lab_suite': 'noble'})]")
    done = run(*words, inventory="inventories/lab.py")
    assert done.returncode == 1 and "is a lab" in done.err
    assert not Path("secrets").exists()


def test_rotate(project):
    run("init")
    run("add", "a/a", stdin=b"old")
    run("add", "b/b", stdin=b"other")
    done = run("rotate", "a/a", stdin=b"new")
    assert done.returncode == 1 and "--no-generate" in done.err, "a piped value must not be ignored"
    assert prod().value("a/a") == "old"

    done = run("rotate", "a/a", "--no-generate", stdin=b"new\n")
    assert done.returncode == 0 and "pyinfra inventories/prod.py deploy.py" in done.out
    assert prod().file.read() == {"a/a": "new", "b/b": "other"}

    assert run("rotate", "a/a", "--generate", stdin=b"ignored").returncode == 0
    generated = prod().file.read()["a/a"]
    assert re.fullmatch(r"[A-Za-z0-9_-]{32}", generated)
    status, output = terminal("rotate", "a/a")
    assert status == 0 and prod().file.read()["a/a"] not in (generated, "") and "Commit" in output
    assert prod().file.read()["a/a"] not in output


def test_rotate_and_remove_of_what_is_not_there(project):
    run("init")
    for words in (("rotate", "a/a", "--generate"), ("remove", "a/a")):
        done = run(*words)
        assert done.returncode == 1 and "there is no a/a in secrets/prod.age" in done.err


def test_several_random_values_at_once(project):
    run("init")
    assert run("add", "--generate", "a/a", "b/b").returncode == 0
    assert prod().names() == ["a/a", "b/b"] and prod().value("a/a") != prod().value("b/b")
    done = run("add", "--generate", "c/c", "b/b")
    assert done.returncode == 1 and "b/b is there already" in done.err
    done = run("add", "c/c", "d/d", stdin=b"x")
    assert done.returncode == 2 and "too many words" in done.err
    assert prod().names() == ["a/a", "b/b"]


def test_remove(project):
    run("init")
    run("add", "a/a", stdin=b"x")
    run("add", "b/b", stdin=b"y")
    assert run("remove", "a/a").returncode == 0
    assert prod().names() == ["b/b"]


def test_the_inventory_by_default(project):
    done = run("list", inventory=None)
    assert done.returncode == 1 and "none in secrets/" in done.err
    run("init")
    assert run("list", inventory=None).returncode == 0
    Path("inventories/staging.py").write_text("")
    run("init", inventory="inventories/staging.py")
    done = run("list", inventory=None)
    assert done.returncode == 1 and "secrets/prod.age, secrets/staging.age" in done.err


@pytest.mark.parametrize(
    "words",
    [("list",), ("add", "a/a"), ("rotate", "a/a", "--generate"), ("remove", "a/a"), ("rekey",)],
)
def test_without_a_file_init_is_named(identity, words):
    done = run(*words, stdin=b"x")
    assert done.returncode == 1 and "init`" in done.err


def test_other_failures_are_one_sentence(project):
    assert "no inventory file" in run("list", inventory="inventories/no.py").err
    run("init")
    assert "by its name" in run("add", "NONSENSE", stdin=b"x").err
    assert "neither in" in run("show", "a/a", "--force").err
    identity_file().chmod(0o644)
    assert "chmod 600" in run("add", "a/a", stdin=b"x").err
    identity_file().chmod(0o600)
    Path("secrets/prod.recipients").unlink()
    assert "prod.recipients can't be read" in run("add", "a/a", stdin=b"x").err
    assert "prod.recipients can't be read" in run("list").err
    Path("secrets/prod.age").unlink()
    Path("secrets").rename("elsewhere")
    Path("secrets").touch()
    assert run("init").err.endswith("/secrets: File exists\n")
    Path("secrets").unlink()
    Path("secrets/prod.age").mkdir(parents=True)
    assert "Is a directory" in run("list").err


def test_as_a_process_of_its_own(project):
    def do(*words, **more):
        command = [sys.executable, "-m", "groundwork.secrets", "--inventory", "inventories/prod.py"]
        return subprocess.run([*command, *words], capture_output=True, text=True, **more)

    assert do("init").returncode == 0
    assert do("add", "a/a", input="hunter2\n").returncode == 0
    assert do("show", "a/a", "--force").stdout == "hunter2\n"
    refused = do("show", "a/a")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1
    assert do("add").returncode == do("nonsense").returncode == 2


def test_edits_at_the_same_time_are_all_kept(project):
    run("init")
    jobs = [
        subprocess.Popen(
            [sys.executable, "-m", "groundwork.secrets", "add", f"a/{n}", "--generate"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        for n in range(8)
    ]
    assert [job.wait(timeout=60) for job in jobs] == [0] * 8
    assert prod().names() == [f"a/{n}" for n in range(8)]
    assert sorted(os.listdir("secrets")) == ["prod.age", "prod.recipients"]
