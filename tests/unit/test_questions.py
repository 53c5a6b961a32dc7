"""Questions asked together: the script in a real shell, the frames, and the file that remembers them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess

import pytest
from pyinfra.api import HiddenValue, StringCommand

from groundwork import questions
from groundwork.memory import Memory
from groundwork.questions import Asked, Question, Reader, SecretQuestion, script

MARK = "groundwork-0123456789abcdef"


def answers(output: bytes, mark: str, size: int = 1 << 16):
    """All that is read of an output, in pieces; and the noise in it."""
    reader, found = Reader(mark), {}
    for start in range(0, len(output), size):
        found.update(reader.read(output[start : start + size]))
    return found, reader.noise


def ask(*commands: str, shell: str = "sh", mark: str = MARK, login: str = "sh", **arguments):
    """What a real shell answers to commands, asked together."""
    batch = [Asked.now(Question.of(command, arguments)) for command in commands]
    done = subprocess.run([login], input=script([[(shell, batch)]], mark).encode(), capture_output=True)
    return answers(done.stdout, mark)


def alone(command: str) -> list[str]:
    """The lines that pyinfra's own way gives: by newlines alone."""
    done = subprocess.run(["sh", "-c", command], capture_output=True, stdin=subprocess.DEVNULL)
    return [line.decode().rstrip("\n") for line in done.stdout.splitlines(keepends=True)]  # of bytes: \r, too


@pytest.mark.parametrize(
    "command",
    [
        "echo one; echo two",
        "printf 'no newline'",
        "printf 'a\\n\\n\\nb\\n\\n'",
        "true",
        "printf ' spaces  \\n\\ttab\\n'",
        "echo 'ünïcode ☃'",
        "printf 'a\\000b\\n'",
        "printf 'a\\033[31mred\\007\\n'",
        "echo \"it's \\\"quoted\\\" \\$HOME `echo x` \\\\ end\"",
        "cat",
        "head -c 10000000 /dev/zero | tr '\\0' x",
        "printf '\\ngroundwork-ffffffffffffffff 1 0\\n'",
        "echo a >&2; echo b",
        "echo EOF; echo \"'\"",
    ],
)
def test_an_answer_is_what_the_command_says_by_itself(command):
    found, noise = ask("echo before", command, "echo after")
    assert found == {1: ["before"], 2: alone(command), 3: ["after"]} and noise == ""


def test_a_carriage_return_ends_no_line():
    assert ask("printf 'a\\rb\\r\\nc\\n'")[0] == {1: ["a\rb\r", "c"]}


@pytest.mark.parametrize(
    "command",
    ["exit 3", "kill -9 $$", "printf '\\377\\376\\n'", "nonesuch", "echo half; false", "if", "kill -TERM $$"],
    ids=["status", "signal", "no text", "no command", "late failure", "no shell", "terminated"],
)  # fmt: skip
def test_what_was_not_answered_well_is_left_to_be_asked_alone(command):
    found, noise = ask("echo before", command, "echo after")
    assert found == {1: ["before"], 2: None, 3: ["after"]} and noise == ""


def test_a_question_that_hangs_holds_no_other_up(monkeypatch):
    monkeypatch.setattr(questions, "QUESTION_SECONDS", 1)
    found, _ = ask("sleep 30 & wait", "trap '' TERM; sleep 30", "echo after")
    assert found == {1: None, 2: None, 3: ["after"]}


def test_a_question_that_reads_gets_nothing():
    """Else it would swallow those that come after it."""
    assert ask("cat; read line; echo \"read: $line\"", "echo after")[0] == {1: ["read: "], 2: ["after"]}


def test_the_script_that_is_cut_off_answers_what_is_whole():
    batch = [Asked.now(Question.of(f"echo {word}", {})) for word in ("one", "two", "three")]
    done = subprocess.run(["sh"], input=script([[("sh", batch)]], MARK).encode(), capture_output=True)
    for end in range(len(done.stdout)):
        found, _ = answers(done.stdout[:end], MARK)
        assert all(found[number] == [word] for number, word in zip(found, ["one", "two", "three"])), end
        assert list(found) == [1, 2, 3][: len(found)]


def test_frames_that_are_out_of_order_end_the_answers():
    output = f"\n{MARK} 0 0\n\n{MARK} 1 0\nx\n{MARK} 3 0\ny\n{MARK} 2 0\nz\n{MARK} 4 0\n".encode()
    assert answers(output, MARK)[0] == {1: [], 3: ["x"]}


def test_a_shell_that_does_not_start_spoils_no_others_answers():
    """As somebody who is no user yet."""
    batch = [Asked.now(Question.of(f"echo {word}", {})) for word in ("one", "two")]
    done = subprocess.run(["sh"], input=script([[("false", batch[:1]), ("sh", batch[1:])]], MARK).encode(), capture_output=True)
    assert answers(done.stdout, MARK) == ({2: ["two"]}, "")


def test_questions_are_asked_at_the_same_time(tmp_path):
    """More is said meanwhile than a pipe holds, and nothing of it gets lost or into another's answer."""
    # Each of three waits for the others.
    meet = "touch {0}; for i in $(seq 100); do [ -e {1} ] && [ -e {2} ] && echo met && break; sleep 0.1; done"
    meetings = [meet.format(*(tmp_path / name for name in names)) for names in ("abc", "bca", "cab")]
    lines = [f"i=0; while [ $i -lt 20000 ]; do echo {word}; i=$((i+1)); done" for word in ("one", "two", "three")]
    batch = [Asked.now(Question.of(line, {})) for line in [*meetings, *lines]]
    lanes = [[("sh", batch[start::3])] for start in range(3)]
    done = subprocess.run(["sh"], input=script(lanes, MARK).encode(), capture_output=True)
    wanted = [["met"], ["one"] * 20000, ["met"], ["two"] * 20000, ["met"], ["three"] * 20000]
    assert answers(done.stdout, MARK) == (dict(enumerate(wanted, start=1)), "")


def test_what_a_login_shell_says_is_told_apart():
    batch = [Asked.now(Question.of("echo one", {}))]
    done = subprocess.run(["sh"], input=script([[("sh", batch)]], MARK).encode(), capture_output=True)
    assert answers(b"Welcome!\n" + done.stdout, MARK) == ({}, "Welcome!")
    assert ask("echo one", shell="echo Hello; sh") == ({}, "Hello")


@pytest.mark.parametrize("size", [1, 7, 100])
def test_an_output_may_come_in_pieces(size):
    batch = [Asked.now(Question.of(command, {})) for command in ("echo one", "false", "printf 'two\n\nthree'")]
    done = subprocess.run(["sh"], input=script([[("sh", batch[1:])]], MARK, batch[0]).encode(), capture_output=True)
    assert answers(done.stdout, MARK, size) == ({1: ["one"], 2: None, 3: ["two", "", "three"]}, "")


def test_questions_are_asked_by_their_own_shell():
    assert ask("echo ${BASH_VERSION:+bash}", _shell_executable="bash")[0] == {1: ["bash"]}


@pytest.mark.parametrize(
    "arguments",
    [
        {"_timeout": 5}, {"_get_pty": True}, {"_stdin": "x"}, {"_env": {"A": "b"}}, {"_success_exit_codes": [0, 1]},
        {"_sudo_password": "x"}, {"_su_password": "x"}, {"_su_user": HiddenValue("x")}, {"_doas": True},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_asked_in_a_way_of_its_own_is_asked_alone(arguments):
    assert Question.of("true", arguments) is None


def test_what_has_a_secret_in_it_is_asked_alone():
    assert Question.of(StringCommand("echo", HiddenValue("s3cret")), {}) is None


def test_arguments_that_mean_nothing_make_no_other_question():
    full = {"_sudo": True, "_sudo_user": None, "_success_exit_codes": [0], "_retry_delay": 5, "_retries": 0, "_env": {}}
    assert Question.of("true", full) == Question.of("true", {"_sudo": True})


# Secrets


class Login(SecretQuestion):
    secrets = {"admin": "s3cret 'quoted'\n second"}

    @staticmethod
    def command(user):
        return f"read -r line; echo {shlex.quote(user)} $line; cat"

    @staticmethod
    def stdin(user):
        return f"{Login.secrets[user]}\nend"


def test_a_secret_is_read_from_standard_input_and_not_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    question = Question.of_secret(Login, {"user": "admin"})
    text = script([[("sh", [Asked.now(question)])]], MARK)
    done = subprocess.run(["sh"], input=text.encode(), capture_output=True)
    assert answers(done.stdout, MARK)[0] == {1: ["admin s3cret 'quoted'", " second", "end"]}
    memory = Memory(["x"], {"execute": [question]})
    memory.save()
    assert "s3cret" not in memory.path.read_text() and "Login" in memory.path.read_text()


@pytest.mark.parametrize(
    "named", [{"class": "os:system", "arguments": {"command": "id"}}, {"class": "nowhere:Nothing", "arguments": {}},
              {"class": "tests.unit.test_questions:Login", "arguments": {"user": "nobody"}},
              {"class": "tests.unit.test_questions:Login", "arguments": {"other": "x"}}, {}],
    ids=["no question", "no module", "no secret", "other arguments", "nothing"],
)  # fmt: skip
def test_a_remembered_secret_question_that_is_none_any_more_is_not_asked(named):
    assert Asked.now(Question("", "{}", json.dumps(named))) is None


def test_of_a_secret_no_process_has_it_in_its_arguments(tmp_path):
    """Nor does a file: the shells that run the script say so themselves."""

    class Look(SecretQuestion):
        command = staticmethod(lambda: "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c 'SEEN-[s]3cret'; true")
        stdin = staticmethod(lambda: "SEEN-s3cret")

    Look.__module__, Look.__qualname__ = __name__, "Look"
    globals()["Look"] = Look
    text = script([[("sh", [Asked.now(Question.of_secret(Look, {}))])]], MARK)
    done = subprocess.run(["sh"], input=text.encode(), capture_output=True)
    assert answers(done.stdout, MARK)[0] == {1: ["0"]}


# The file


@pytest.fixture
def memory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    one, two = Question.of("echo one", {"_sudo": True}), Question.of("echo two", {})
    memory = Memory(["inventory", "web1"], {"execute": [one, two, one]})
    memory.save()
    return memory


def loaded(of=("inventory", "web1")) -> Memory:
    memory = Memory(list(of))
    memory.load()
    return memory


def test_questions_are_remembered_in_their_order(memory):
    assert loaded().stages == memory.stages
    assert oct(memory.path.stat().st_mode) == "0o100600" and oct(memory.path.parent.stat().st_mode) == "0o40700"
    assert [path.name for path in memory.path.parent.iterdir()] == [memory.path.name]  # no candidate left


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "", lambda text: text[: len(text) // 2], lambda text: "[]", lambda text: "null", lambda text: "\0\1",
        lambda text: text.replace('"format":1', '"format":2'), lambda text: text.replace('"pyinfra":"', '"pyinfra":"0.'),
        lambda text: text.replace('"order":[0,1,0]', '"order":[0,7]'), lambda text: text.replace('"echo one"', "1"),
        lambda text: text.replace("web1", "web2"), lambda text: text.replace('"of"', '"of2"'),
        lambda text: text.replace('"order":[0,1,0]', '"order":["0"]'),
        lambda text: text.replace('{\\"_sudo\\": true}', "not json"), lambda text: text.replace('{\\"_sudo\\": true}', "[]"),
        lambda text: text.replace("_sudo", "_nonesuch"), lambda text: text.replace("echo one", "echo \\ud800"),
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_file_is_none(memory, damage, caplog):
    memory.path.write_text(damage(memory.path.read_text()))
    found = loaded()
    assert found.stages == {} and not found.refused and "not used" not in caplog.text
    found.stages = memory.stages
    found.save()
    assert loaded().stages == memory.stages


def test_bytes_that_are_no_text_are_none(memory):
    memory.path.write_bytes(b"\xff\xfe")
    assert loaded().stages == {}


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o666, 0o700])
def test_a_file_that_others_may_reach_is_refused(memory, mode, caplog):
    memory.path.chmod(mode)
    before = memory.path.read_text()
    found = loaded()
    assert found.refused and not found.stages and f"{memory.path} is -r" in caplog.text and "chmod 600" in caplog.text
    found.save()
    assert memory.path.read_text() == before


def test_a_directory_that_others_may_reach_is_refused(memory, caplog):
    memory.path.parent.chmod(0o755)
    assert loaded().refused and "chmod 700" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("what", ["file", "directory"])
def test_another_users_is_refused(memory, what, caplog):
    os.chown(memory.path if what == "file" else memory.path.parent, 12345, -1)
    assert loaded().refused and "belongs to user id 12345" in caplog.text


def test_a_directory_below_one_with_a_group_of_its_own_is_ours(memory):
    """It has the setgid bit from there, which `chmod 700` leaves."""
    memory.path.parent.chmod(0o2700)
    assert loaded().stages == memory.stages


def test_a_disk_that_is_full_leaves_nothing_behind(memory, monkeypatch):
    def full(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    memory.save()
    assert [path.name for path in memory.path.parent.iterdir()] == [memory.path.name]


def test_where_there_is_no_home_nothing_is_remembered(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    memory = Memory(["x"], {"execute": []})
    memory.load()
    memory.save()


def test_a_name_that_is_no_text_is_no_trouble(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    memory = Memory(["inv\udcffentory"], {"execute": []})
    memory.load()
    memory.save()


def test_a_link_is_refused(memory, tmp_path, caplog):
    target = tmp_path / "elsewhere"
    memory.path.rename(target)
    memory.path.symlink_to(target)
    assert loaded().refused and "must be -rw-------" in caplog.text


def test_where_nothing_can_be_written_nothing_is_remembered(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    memory = Memory(["x"], {"execute": []})
    memory.load()
    memory.save()
    assert not memory.stages.get("execute") and not memory.refused


def test_what_nobody_has_asked_for_long_is_forgotten(memory):
    old = memory.path.parent / "old.json"
    old.write_text("{}")
    os.utime(old, (0, 0))
    memory.save()
    assert not old.exists() and memory.path.exists()
