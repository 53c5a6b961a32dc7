"""The connector that asks once: when it asks together, and when an answer holds no longer.

The network alone is left out: what would go to a host's shell goes to one here.
"""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import gevent
import gevent.subprocess
import pytest
from paramiko import ChannelException
from pyinfra.api import Config, FactBase, Host, Inventory, State, StringCommand, facts
from pyinfra.api.state import StateStage
from pyinfra.connectors import ssh
from pyinfra.connectors.util import CommandOutput, OutputLine, make_unix_command
from pyinfra.context import ctx_host, ctx_state

from groundwork import connector, questions
from groundwork.connector import Connector, Sessions
from groundwork.questions import Question, SecretQuestion, ask, asking


class Here(Connector):
    """Commands are run on this machine."""

    def connect(self):
        self.sent_alone = []

    def _run_script(self, text):
        self.scripts += 1
        yield subprocess.run(["sh"], input=text.encode(), capture_output=True).stdout


def _run(self, command, print_output=False, print_input=False, **arguments):
    """SSHConnector.run_shell_command, here."""
    stdin = arguments.pop("_stdin", None)
    for name in ("_success_exit_codes", "_timeout", "_get_pty", "_sudo"):
        arguments.pop(name, None)
    self.sent_alone.append(str(command))
    line = make_unix_command(StringCommand(command), **arguments).get_raw_value()
    done = subprocess.run(line, shell=True, input=stdin or "", capture_output=True, text=True)
    lines = [OutputLine("stdout", item) for item in done.stdout.splitlines()]
    return done.returncode == 0, CommandOutput(lines + [OutputLine("stderr", item) for item in done.stderr.splitlines()])


class Say(FactBase):
    default = list

    def command(self, text):
        return f"cat {text} 2>/dev/null || echo none"

    def process(self, output):
        return list(output)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that begins a run of hosts, and gives them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(ssh.SSHConnector, "run_shell_command", _run)
    monkeypatch.setattr(ssh.SSHConnector, "put_file", lambda *arguments, **more: True)
    monkeypatch.setattr(Host, "init", connector._init)
    monkeypatch.setattr(facts, "_get_fact", connector._get_fact)
    monkeypatch.setattr(connector, "Connector", Here)
    monkeypatch.setattr(Here, "_shell", lambda self, arguments: "sh")
    monkeypatch.setattr("sys.argv", ["pyinfra", "inventory.py", "deploy.py"])

    def begin(*names, stage=StateStage.Execute, look_ahead=False):
        inventory = Inventory((list(names or ["web1"]), {}))
        state = State(inventory, Config(), check_for_changes=look_ahead)
        state.current_stage = stage
        ctx_state.set(state)
        for item in inventory:
            item.connect()
            state.activate_host(item)
        return list(inventory)

    yield begin
    ctx_state.reset()


def end(host, stage=StateStage.Disconnect):
    host.state.current_stage = stage
    host.disconnect()


@pytest.fixture
def paths(tmp_path):
    for name in "abcdefgh":
        (tmp_path / name).write_text(f"{name}\n")
    return [str(tmp_path / name) for name in "abcdefgh"]


def all_of(host, paths):
    with ctx_host.use(host):
        return [host.get_fact(Say, text=path) for path in paths]


WANTED = [[name] for name in "abcdefgh"]


def test_the_first_run_asks_in_the_ordinary_way_and_the_second_once(run, paths):
    (host,) = run()
    assert all_of(host, paths) == WANTED
    assert (host.connector.scripts, len(host.connector.sent_alone)) == (0, 8)
    end(host)
    (host,) = run()
    assert all_of(host, paths) == WANTED
    assert (host.connector.scripts, len(host.connector.sent_alone)) == (1, 0)


@pytest.fixture
def again(run, paths):
    """A second run of a host that has been asked for all paths before."""
    (host,) = run()
    all_of(host, paths)
    end(host)
    return run()[0]


def test_the_same_question_again_is_answered_again(again, paths):
    assert all_of(again, [*paths, *paths]) == WANTED + WANTED
    assert (again.connector.scripts, len(again.connector.sent_alone)) == (1, 0)


def test_a_command_drops_every_answer(again, paths):
    assert all_of(again, paths[:4]) == WANTED[:4]
    again.run_shell_command(StringCommand(f"echo new >{paths[0]}; echo other >{paths[6]}"))
    assert all_of(again, [paths[0], *paths[4:]]) == [["new"], ["e"], ["f"], ["other"], ["h"]]
    assert again.connector.scripts == 2


def test_an_upload_drops_every_answer(again, paths):
    all_of(again, paths[:1])
    open(paths[1], "w").write("uploaded\n")
    again.put_file("x", "y")
    assert all_of(again, paths[1:2]) == [["uploaded"]]


def test_a_command_on_another_host_drops_every_answer(run, paths):
    for host in run("web1", "db1"):
        all_of(host, paths)
        end(host)
    web, db = run("web1", "db1")
    all_of(web, paths[:1])
    db.run_shell_command(StringCommand(f"echo moved >{paths[1]}"))
    assert all_of(web, paths[1:2]) == [["moved"]]


def test_a_question_asked_while_another_host_was_changed_is_asked_again(run, paths, monkeypatch):
    for host in run("web1", "db1"):
        all_of(host, paths)
        end(host)
    web, db = run("web1", "db1")
    with connector._changing():
        all_of(web, paths[:1])
        open(paths[1], "w").write("later\n")
    assert all_of(web, paths[1:2]) == [["later"]]


def test_the_next_stage_asks_anew(run, paths):
    (host,) = run(stage=StateStage.Prepare, look_ahead=True)
    all_of(host, paths)
    host.state.current_stage = StateStage.Execute
    all_of(host, paths)
    end(host)
    (host,) = run(stage=StateStage.Prepare, look_ahead=True)
    assert all_of(host, paths) == WANTED
    open(paths[0], "w").write("meanwhile\n")
    host.state.current_stage = StateStage.Execute
    assert all_of(host, paths)[0] == ["meanwhile"]
    assert host.connector.scripts == 2


@pytest.fixture
def ahead(run, paths, tmp_path, monkeypatch):
    """A function that begins a run with -y, after one that asked for one path in its first stage and for all in its second."""
    lock = tmp_path / "run.lock"
    lock.write_text("")
    state = f"stat -c '%s %i %.9Y' {lock} 2>/dev/null || echo none"
    monkeypatch.setattr(connector, "LOCK", Question.of(state, {}))
    (host,) = run(stage=StateStage.Prepare)
    all_of(host, paths[:1])
    host.state.current_stage = StateStage.Execute
    host.connector.locked("none", "")
    all_of(host, paths)
    end(host)

    def begin():
        (host,) = run(stage=StateStage.Prepare)
        host.connector.ahead = gevent.spawn(host.connector._ask_ahead)
        assert all_of(host, paths[:1]) == WANTED[:1]
        host.state.current_stage = StateStage.Execute
        host.connector.locking()
        return host, lock, lambda: subprocess.run(state, shell=True, capture_output=True, text=True).stdout.strip()

    return begin


@pytest.mark.parametrize("there", [True, False])
def test_with_y_all_is_asked_at_once_and_holds_under_the_lock(ahead, paths, there):
    host, lock, state = ahead()
    if not there:
        lock.unlink()
        host, lock, state = ahead()
    was = state()
    lock.write_text("taken")
    host.connector.locked(was, state())
    assert all_of(host, paths) == WANTED and host.connector.scripts == 1


@pytest.mark.parametrize("meanwhile", ["another run had the lock", "another run died with it", "something was changed", "no lock was taken"])
def test_what_was_asked_ahead_holds_only_if_nobody_came_between(ahead, paths, meanwhile):
    if meanwhile == "another run died with it":
        ahead()[1].write_text("left")
    host, lock, state = ahead()
    open(paths[2], "w").write("changed\n")
    if meanwhile == "another run had the lock":
        lock.write_text("its")
        lock.write_text("")
    was = state()
    lock.write_text("ours")
    if meanwhile == "something was changed":
        host.run_shell_command(StringCommand("true"))
    if meanwhile != "no lock was taken":
        host.connector.locked(was, state())
    assert all_of(host, paths)[2] == ["changed"]


def test_what_is_asked_while_the_lock_is_taken_holds(run, ahead, paths):
    (host,) = run()
    _, lock, state = ahead()
    was = state()
    lock.write_text("ours")
    host.connector.locking()
    host.connector.locked(was, state())
    assert host.connector.scripts == 1
    assert all_of(host, paths) == WANTED and host.connector.scripts == 1


def test_what_was_looked_ahead_for_is_asked_again_after_somebody_was_asked(run, ahead, paths):
    """Whoever runs it without -y, after runs with it, may have changed something by hand before Enter."""
    (host,) = run(stage=StateStage.Prepare, look_ahead=True)
    host.connector.ahead = gevent.spawn(host.connector._ask_ahead)
    assert all_of(host, paths) == WANTED
    open(paths[2], "w").write("by hand\n")
    _, lock, state = ahead()
    host.state.current_stage = StateStage.Execute
    host.connector.locking()
    was = state()
    lock.write_text("ours")
    host.connector.locked(was, state())
    assert all_of(host, paths)[2] == ["by hand"] and host.connector.scripts == 2


def test_a_run_that_ended_with_the_lock_has_nothing_more_to_ask(run, ahead, paths, capfd):
    host, lock, state = ahead()
    host.connector.memory.stages = {"execute": [connector.LOCK]}
    host.connector.asked = {}
    host.connector.memory.save()
    (host,) = run(stage=StateStage.Prepare)
    host.connector.ahead = gevent.spawn(host.connector._ask_ahead)
    assert all_of(host, paths) == WANTED and "Traceback" not in capfd.readouterr().err
    assert connector.LOCK in host.connector.answers.given


def test_what_takes_no_lock_is_not_asked_for_more_than_its_stage(run, paths):
    for scripts in (0, 2):
        (host,) = run(stage=StateStage.Prepare)
        host.connector.ahead = gevent.spawn(host.connector._ask_ahead)
        assert all_of(host, paths[:2]) == WANTED[:2]
        host.state.current_stage = StateStage.Execute
        assert all_of(host, paths[2:]) == WANTED[2:]
        assert host.connector.scripts == scripts and len(host.connector.asked["prepare"]) == 2
        assert len(host.connector.answers.asked) == (6 if scripts else 0)
        end(host)


def test_an_answer_is_taken_as_soon_as_it_is_there(run, tmp_path):
    class Slow(Say):
        def command(self, text):
            return f"while [ ! -e {text} ]; do sleep 0.05; done; echo came"

    class Stream(Here):
        def _run_script(self, text):
            self.scripts += 1
            process = gevent.subprocess.Popen(["sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            process.stdin.write(text.encode())
            process.stdin.close()
            while received := process.stdout.read1():
                yield received

    def both(host):
        with ctx_host.use(host):
            first = host.get_fact(Say, text=tmp_path / "none")
            (tmp_path / "go").touch()  # the other one's answer comes after that
            return first, host.get_fact(Slow, text=tmp_path / "go")

    (host,) = run()
    both(host)
    end(host)
    (tmp_path / "go").unlink()
    (host,) = run()
    host.connector.__class__ = Stream
    with gevent.Timeout(10):
        assert both(host) == (["none"], ["came"]) and (host.connector.scripts, host.connector.sent_alone) == (1, [])


def test_nothing_is_changed_before_what_was_asked_has_come_to_its_end(again, paths, tmp_path):
    class Slow(Here):
        def _run_script(self, text):
            for received in super()._run_script(text):
                yield received[:200]
                gevent.sleep(0.3)
                (tmp_path / "ended").touch()
                yield received[200:]

    again.connector.__class__ = Slow
    all_of(again, paths[:1])
    good, output = again.run_shell_command(StringCommand(f"ls {tmp_path}/ended"))
    assert good, output.stderr


def test_an_answer_that_is_old_is_asked_for_again(again, paths, monkeypatch):
    all_of(again, paths[:1])
    open(paths[1], "w").write("later\n")
    monkeypatch.setattr(connector, "FRESH_SECONDS", 0)
    assert all_of(again, paths[1:2]) == [["later"]]


def test_where_everything_changes_little_is_asked_in_vain(again, paths):
    """A script of eight questions after each of eight changes would be 36 answers, for 8."""
    sent = []
    monitored = again.connector._ask
    again.connector._ask = lambda answers, batch: (sent.append(len(batch)), monitored(answers, batch))[1]
    for path in paths:
        all_of(again, [path])
        again.run_shell_command(StringCommand("true"))
    assert sent[0] == 8 and max(sent[1:]) <= 2


def test_after_one_change_the_rest_is_asked_at_once(again, paths):
    all_of(again, paths[:5])
    again.run_shell_command(StringCommand("true"))
    assert all_of(again, paths[5:]) == WANTED[5:]
    assert again.connector.scripts == 2


def test_a_new_question_is_asked_alone_and_remembered(run, again, paths, tmp_path):
    new = tmp_path / "new"
    new.write_text("new\n")
    assert all_of(again, [paths[0], str(new), *paths[1:]]) == [["a"], ["new"], *WANTED[1:]]
    assert (again.connector.scripts, len(again.connector.sent_alone)) == (1, 1)
    end(again)
    (host,) = run()
    all_of(host, [paths[0], str(new), *paths[1:]])
    assert (host.connector.scripts, len(host.connector.sent_alone)) == (1, 0)


def test_a_new_question_that_comes_first_is_asked_with_the_others(again, paths, tmp_path):
    assert all_of(again, [str(tmp_path / "nothing"), *paths]) == [["none"], *WANTED]
    assert (again.connector.scripts, len(again.connector.sent_alone)) == (1, 0)


def test_what_is_not_asked_any_more_is_forgotten(run, again, paths):
    all_of(again, paths[:3])
    end(again)
    (host,) = run()
    all_of(host, paths[:3])
    assert len(host.connector.answers.asked) == 3


def test_a_run_that_failed_forgets_nothing(run, again, paths):
    all_of(again, paths[:3])
    end(again, stage=StateStage.Execute)
    (host,) = run()
    all_of(host, paths)
    assert (host.connector.scripts, len(host.connector.sent_alone)) == (1, 0)


def test_a_question_that_fails_is_asked_alone_and_fails_as_ever(run, paths):
    class Fails(FactBase):
        command = staticmethod(lambda: "echo half; exit 3")

    def asked(host):
        with ctx_host.use(host):
            return host.get_fact(Fails, _ignore_errors=True), all_of(host, paths)

    (host,) = run()
    first = asked(host)
    end(host)
    (host,) = run()
    assert asked(host) == first == (None, WANTED)
    assert (host.connector.scripts, len(host.connector.sent_alone)) == (1, 1)


def test_a_shell_that_speaks_first_is_not_asked_together(again, paths, monkeypatch):
    monkeypatch.setattr(Here, "_shell", lambda self, arguments: "echo Welcome; sh")
    assert all_of(again, paths) == WANTED and len(again.connector.sent_alone) == 8


@pytest.mark.parametrize("error", [OSError("cut"), EOFError(), ssh.SSHException("gone"), TimeoutError()], ids=repr)
def test_a_script_that_could_not_be_sent_is_asked_alone(again, paths, monkeypatch, error):
    def cut(self, text):
        raise error

    monkeypatch.setattr(Here, "_run_script", cut)
    assert all_of(again, paths) == WANTED and len(again.connector.sent_alone) == 8


class Password(SecretQuestion):
    now = "one"
    command = staticmethod(lambda user, roles: f"read -r line; echo {user}:$line")
    stdin = staticmethod(lambda user, roles: f"{Password.now} {roles}\n")


ANNA = {"user": "anna", "roles": {"b": 1, "a": (2, 3)}}
"""Read again, it is in another order, and has a list for a tuple."""
AGAIN = "{'a': [2, 3], 'b': 1}"


def test_a_question_with_secrets_is_asked_with_the_others(run, paths):
    (host,) = run()
    all_of(host, paths)
    assert ask(host, Password, **ANNA)[1].stdout_lines == [f"anna:one {AGAIN}"]
    end(host)
    (host,) = run()
    Password.now = "two"
    all_of(host, paths)
    assert ask(host, Password, **ANNA)[1].stdout_lines == [f"anna:two {AGAIN}"]
    assert (host.connector.scripts, host.connector.sent_alone) == (1, [])
    # What has changed since it was sent counts as never asked.
    Password.now = "three"
    assert ask(host, Password, **ANNA)[1].stdout_lines == [f"anna:three {AGAIN}"]


def test_a_fact_that_asks_another_first_stays_a_question(run, paths, tmp_path):
    class Nested(Say):
        def check_preconditions(self, state, host):
            host.get_fact(Say, text=paths[0])

    def asked(host):
        with ctx_host.use(host):
            return host.get_fact(Nested, text=paths[1])

    (host,) = run()
    asked(host)
    end(host)
    (host,) = run()
    assert asked(host) == ["b"] and (host.connector.scripts, host.connector.sent_alone) == (1, [])


def test_what_is_no_question_is_none(again, paths):
    with asking(again):
        again.run_shell_command(StringCommand("true"))
    before = connector._changes
    again.run_shell_command(StringCommand("true"))
    assert connector._changes == before + 2


def test_verbose_output_is_pyinfras_own(again, paths):
    again.state.print_fact_output = True
    assert all_of(again, paths) == WANTED and again.connector.scripts == 0


@pytest.mark.parametrize("value, wanted", [("ssh", ssh.SSHConnector), ("groundwork", Here)])
def test_one_setting_names_pyinfras_own(run, value, wanted):
    inventory = Inventory((["web1"], {"connector": value}))
    State(inventory, Config())
    assert type(next(iter(inventory)).connector) is wanted


def test_other_connectors_stay_as_they_are(run):
    inventory = Inventory((["@local"], {}))
    State(inventory, Config())
    assert not isinstance(next(iter(inventory)).connector, Connector)


def test_it_is_there_by_its_name_for_other_inventories():
    (host,) = Inventory((["@groundwork/web1"], {}))
    assert host.name == "web1" and host.connector_cls is Connector


def test_with_another_pyinfra_it_steps_aside(monkeypatch, caplog):
    before = Host.init
    monkeypatch.setattr(connector, "PYINFRA", "3.11.0")
    connector.set_up()
    assert Host.init is before and "pyinfra is 3.11.0" in caplog.text


def test_where_pyinfras_function_is_another_it_steps_aside(monkeypatch, caplog):
    before = Host.init
    monkeypatch.setattr(facts, "get_fact", lambda *arguments: None)
    connector.set_up()
    assert Host.init is before and "get_fact is another one" in caplog.text


# Sessions


class Transport:
    """A transport's sessions; the connection below is left out."""

    def __init__(self, most=100):
        self.opened, self.most, self.error = [], most, None

    def open_session(self, *arguments, **more):
        if self.error or len([item for item in self.opened if not item.closed]) >= self.most:
            raise self.error or ChannelException(2, "Connect failed")
        self.opened.append(SimpleNamespace(closed=False))
        return self.opened[-1]


def test_a_session_is_there_before_it_is_needed():
    transport = Transport()
    sessions = Sessions(transport)
    gevent.sleep(0.01)
    assert len(transport.opened) == 1
    assert transport.open_session(timeout=None) is transport.opened[0]
    gevent.sleep(0.01)
    assert transport.open_session() is transport.opened[1] and sessions.taken == 2


def test_one_that_the_host_has_closed_is_not_taken():
    transport = Transport()
    Sessions(transport)
    gevent.sleep(0.01)
    transport.opened[0].closed = True
    assert transport.open_session() is transport.opened[1]


def test_where_there_can_be_one_only_its_end_is_waited_for(monkeypatch):
    transport = Transport(most=1)
    Sessions(transport)
    gevent.sleep(0.01)
    first = transport.open_session()
    gevent.spawn_later(0.3, setattr, first, "closed", True)
    assert transport.open_session() is transport.opened[1]
    monkeypatch.setattr(connector, "ENDED_SECONDS", 0.2)
    with pytest.raises(ChannelException):
        transport.open_session()


def test_a_connection_that_is_lost_is_said_to_be():
    transport = Transport()
    transport.error = EOFError()
    Sessions(transport)
    gevent.sleep(0.01)
    with pytest.raises(ConnectionResetError, match="the connection was lost"):
        transport.open_session()


@pytest.mark.parametrize("error", [OSError("cut"), EOFError(), ssh.SSHException("gone")], ids=repr)
def test_a_command_on_a_lost_connection_fails_and_says_so(again, monkeypatch, error):
    """An exception would end the run for all hosts."""

    def lost(*arguments, **more):
        raise error

    monkeypatch.setattr(ssh.SSHConnector, "run_shell_command", lost)
    monkeypatch.setattr(Here, "_run_script", lost)
    for good, output in (again.run_shell_command(StringCommand("true")), ask(again, Password, **ANNA)):
        assert not good and output.stderr.startswith("the connection was lost")


def test_a_command_that_takes_too_long_is_told_by_pyinfra(again, monkeypatch):
    def late(*arguments, **more):
        raise TimeoutError

    monkeypatch.setattr(ssh.SSHConnector, "run_shell_command", late)
    with pytest.raises(TimeoutError):
        again.run_shell_command(StringCommand("true"))
