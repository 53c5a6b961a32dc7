"""pyinfra's SSH connector, asking once.

Each fact is a command of its own, and each command costs round trips. This connector remembers which questions
the last run asked of a host, asks them all in one script as soon as it is connected, and answers from what comes
back, as it comes. What makes it safe:

- Only questions are kept between runs (groundwork/memory.py); every answer is of this run, and of the last minute.
- Every answer is dropped as soon as anything is changed on any host, and when pyinfra goes on to its next stage: an
  operation sees what was there after the one before it. With -y, where pyinfra does not wait between the stages, what the
  operations will ask is asked with the rest when a run begins; it holds if no other run has had the host's lock since.
- What was not answered well (another exit status than 0, no text, cut off) is asked again in pyinfra's own way.

pyinfra does not tell a connector what is a question. It should (docs/upstream/); until then `set_up` takes the place
of two of its functions, and of nothing else.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Iterator

import gevent
from gevent.event import Event
from paramiko import Channel, ChannelException, SSHException, Transport
from pyinfra import __version__ as PYINFRA
from pyinfra import logger
from pyinfra.api import BaseStateCallback, StringCommand, facts
from pyinfra.api.host import Host
from pyinfra.api.output import echo
from pyinfra.api.state import State, StateStage
from pyinfra.connectors import ssh
from pyinfra.connectors.util import CommandOutput, OutputLine, make_unix_command_for_host

from groundwork import command_line, connections
from groundwork.questions import QUESTION_SECONDS, Asked, Group, Question, Reader, SecretQuestion, asking, script

if TYPE_CHECKING:
    from groundwork.memory import Memory

FRESH_SECONDS = 60
"""How long an answer counts, where a run takes longer without changing anything."""

LANES = 2
"""Questions that are asked at the same time: on two cores two took 0.34 s for all of the stack's, three 0.35, one 0.56; and a
whole run, which reads the first answers while the others are asked, 1.73 s with two and 1.84 with three."""

ENDED_SECONDS = 2
"""How long sshd may take to see that a session has ended, where its MaxSessions lets no other begin before."""

LOCK = Question.of("stat -c '%s %i %.9Y' /run/groundwork/run.lock 2>/dev/null || echo none", {})
"""What the lock's file is: it is written by who takes the lock, and emptied by who gives it free (files/lock/hold, which says the same)."""

SETTING = "connector"
"""The host data that names the connector: "groundwork", or "ssh" for pyinfra's own."""

EXCHANGES = "GROUNDWORK_EXCHANGES"
"""Environment variable: a file to which each host's number of exchanges is added, for bench/ and tests."""

_changes = 0
"""How often anything was changed on any host by this process, or may have been."""


def set_up() -> None:
    """Use this connector for every host that is reached by SSH and does not say otherwise."""
    if why := _unsupported():
        logger.warning(f"hosts are asked in pyinfra's own way, which is slower: {why}")
        return
    Host.init = _init
    facts._get_fact = _get_fact


@dataclass
class Answers:
    """What a host has answered."""

    given: dict[Question, tuple[Asked, list[str]]] = field(default_factory=dict)
    asked: set[Question] = field(default_factory=set)
    """All that were sent, answered well or not."""
    awaited: set[Question] = field(default_factory=set)
    """Those whose answer may still come."""
    at: tuple = ()
    """Stage and number of changes when they were asked."""
    time: float = 0.0
    served: int = 0
    _more: Event = field(default_factory=Event)

    def came(self, *questions: Question) -> None:
        """No answer to these is awaited any more."""
        self.awaited.difference_update(questions)
        self._more.set()
        self._more = Event()

    def get(self, question: Question) -> tuple[Asked, list[str]] | None:
        """What was answered, when it is; None where it is not."""
        while question in self.awaited:
            self._more.wait()
        return self.given.get(question)


class Sessions:
    """A connection's sessions, each opened before it is needed: a command costs one round trip, and not two."""

    def __init__(self, transport: Transport):
        self._open_session = transport.open_session
        self.taken = 0
        self.script: gevent.Greenlet | None = None
        """Asks questions, in a session of its own."""
        self.ahead: gevent.Greenlet | None = gevent.spawn(self._open_ahead)
        transport.open_session = self.take

    def take(self, *arguments: Any, **more: Any) -> Channel:
        """In the place of Transport.open_session.

        Raises:
            OSError: the connection is lost.
            paramiko.SSHException: the host gives no session.
        """
        self.taken += 1
        ahead, self.ahead = self.ahead, None
        channel = ahead.get() if ahead is not None and not any(arguments) and not any(more.values()) else None
        if channel is None or channel.closed:
            return self._open(*arguments, **more)
        self.ahead = gevent.spawn(self._open_ahead)
        return channel

    def _open(self, *arguments: Any, **more: Any) -> Channel:
        end = time.monotonic() + ENDED_SECONDS
        while True:
            try:
                return self._open_session(*arguments, **more)
            except EOFError:
                raise ConnectionResetError("the connection was lost") from None
            except ChannelException:
                if self.script is not None and self.script is not gevent.getcurrent() and not self.script.ready():
                    self.script.join()
                    end = time.monotonic() + ENDED_SECONDS
                if time.monotonic() > end:
                    raise
                gevent.sleep(0.1)

    def _open_ahead(self) -> Channel | None:
        """None where there can't be another one now: no more is tried then."""
        try:
            return self._open_session()
        except (SSHException, OSError, EOFError):
            return None


class Connector(ssh.SSHConnector):
    """SSH, with questions asked together."""

    is_question = False
    """What is run next is a question: pyinfra does not tell."""

    def __init__(self, state: State, host: Host):
        super().__init__(state, host)
        self.answers = Answers()
        self.asked: dict[str, list[Question]] = {}
        self.memory: Memory | None = None
        self.alone: set[Question] = set()
        """What was not answered well beside others; it may be slow, too."""
        self.position = 0
        self.appetite: int | None = None
        """How many questions the next script asks; None for all."""
        self.sessions: Sessions | None = None
        self.ahead: gevent.Greenlet | None = None
        """Asks before there is a question."""
        self.script: gevent.Greenlet | None = None
        """Reads the answers of the last script."""
        self.scripts = 0

    @staticmethod
    def make_names_data(name):
        yield name, {"ssh_hostname": name}, []

    # pyinfra's side

    def connect(self) -> None:
        super().connect()
        transport = self.client.get_transport()
        # Without it the kernel holds small packets back until the host has acknowledged the one before, 40 ms a time.
        end = connections.socket_below(transport)
        if end is not None:
            with suppress(OSError):  # closed by now, which the first command says
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sessions = Sessions(transport)
        # What pyinfra does until it asks takes longer than the answers. (Where sudo has a password it is not known yet.)
        if self.state.current_stage <= StateStage.Connect and not self.host.data.get("sudo_password"):
            self.ahead = gevent.spawn(self._ask_ahead)

    def run_shell_command(self, command, print_output=False, print_input=False, **arguments):
        if self.is_question:
            self.is_question = False
            return self.run_fact_command(command, print_output, print_input, **arguments)
        self._settle()
        with _changing(), _Lost() as lost:
            return super().run_shell_command(command, print_output, print_input, **arguments)
        return lost.answer

    def put_file(self, *arguments, **more):
        self._settle()
        with _changing():
            return super().put_file(*arguments, **more)

    def rsync(self, *arguments, **more):
        self._settle()
        with _changing():
            return super().rsync(*arguments, **more)

    def _settle(self) -> None:
        """Have all that was sent come to its end: nothing is asked while something is changed."""
        for job in ("ahead", "script"):
            if (greenlet := getattr(self, job)) not in (None, gevent.getcurrent()):
                greenlet.join()
                setattr(self, job, None)

    def run_fact_command(self, command, print_output=False, print_input=False, **arguments):
        """Run a command that changes nothing: as docs/upstream proposes it to pyinfra."""
        question = Question.of(command, arguments)
        if question is not None and not print_output:
            self._note(question)
            if (lines := self._answer(question)) is not None:
                if print_input:
                    echo(f"{self.host.print_prefix}>>> {question.command}", err=True)
                return True, CommandOutput([OutputLine("stdout", line) for line in lines])
        return super().run_shell_command(command, print_output, print_input, **arguments)

    def ask_secret(self, question: type[SecretQuestion], arguments: dict[str, Any]) -> tuple[bool, CommandOutput]:
        """See `ask`."""
        wanted = Question.of_secret(question, arguments)
        self._note(wanted)
        # By the arguments as they are remembered, whose order may be another one.
        command, stdin = wanted.text()
        if (lines := self._answer(wanted, command, stdin)) is not None:
            return True, CommandOutput([OutputLine("stdout", line) for line in lines])
        with _Lost() as lost:
            return super().run_shell_command(StringCommand(command), _sudo=True, _stdin=stdin)
        return lost.answer

    def locking(self) -> None:
        """The host's lock is about to be taken: what the operations ask is asked at the same time, where it is not yet."""
        asked = LOCK in self.answers.asked and self._is_under_way()
        if self._stage == "execute" and LOCK in self._remembered() and not asked and self.ahead is None:
            self.ahead = gevent.spawn(self._ask_ahead)

    def locked(self, was: str, now: str) -> None:
        """This run has the host's lock: what was asked before holds on, if nobody else has had the lock since.

        Args:
            was: what the lock's file was when the lock was taken, as LOCK's answer.
            now: what it is since.
        """
        self._note(LOCK)
        self._come_to_ask()
        _, seen = self.answers.get(LOCK) or (None, [])
        free = [was] if was == "none" or was.startswith("0 ") else None
        alone = seen in (free, [now]) and self._is_under_way()
        self.answers.at = ("execute", _changes) if alone else ()

    def _is_under_way(self) -> bool:
        """Nothing was changed since the answers were asked for, and nobody looked at them meanwhile, as after a look ahead."""
        return self.answers.at in (("prepare", _changes), ("execute", _changes))

    # What is remembered

    def remember(self) -> None:
        """Write down what was asked, for the next run; what it did not come to is kept as it was."""
        if self.memory is None:
            return
        for stage, asked in self.asked.items():
            complete = self.state.current_stage == StateStage.Disconnect and self.host not in self.state.failed_hosts
            rest = [] if complete else [item for item in self.memory.stages.get(stage, []) if item not in set(asked)]
            self.memory.stages[stage] = asked + rest
        if self.asked:
            self.memory.save()

    def _remembered(self, stage: str = "") -> list[Question]:
        """The questions of a stage, by default of this one."""
        if self.memory is None:
            from groundwork.memory import Memory  # whose pydantic takes longer to be read than all else

            inventory, operations = command_line.words(sys.argv[1:])
            address, port, user = (str(self.data[f"ssh_{name}"] or "") for name in ("hostname", "port", "user"))
            self.memory = Memory([os.path.abspath(inventory), *operations, self.host.name, address, port, user])
            self.memory.load()
        stages, stage = self.memory.stages, stage or self._stage
        return stages.get(stage, stages.get("execute", []) if stage == "look ahead" else [])

    @property
    def _stage(self) -> str:
        if self.state.current_stage >= StateStage.Execute:
            return "execute"
        return "look ahead" if self.state.should_check_for_changes() else "prepare"

    def _note(self, question: Question) -> None:
        """Note that a question came up, and where in the remembered ones we are."""
        noted = self.asked.get(self._stage)
        if noted is None:
            noted, self.position, self.appetite = self.asked.setdefault(self._stage, []), 0, None
        noted.append(question)
        remembered = self._remembered()
        later = remembered.index(question, self.position) if question in remembered[self.position :] else None
        self.position = self.position if later is None else later + 1

    # Answering

    def _ask_ahead(self) -> None:
        """Ask what the last run has asked in this stage; and what under the lock, where that follows at once."""
        self._drop_old()
        batch, more = self._remembered(), self._remembered("execute")
        if self._stage in ("prepare", "execute") and LOCK in more:
            batch = [LOCK, *batch, *more]
        if batch:
            self._send(list(dict.fromkeys(batch)))

    def _come_to_ask(self) -> None:
        if self.ahead is not None:
            self.ahead.join()
            self.ahead = None

    def _answer(self, question: Question, command: str | None = None, stdin: str | None = None) -> list[str] | None:
        """The lines of an answer that still holds, asked for now where there is none; None where it must be asked by itself."""
        self._come_to_ask()
        self._drop_old()
        if question not in self.answers.asked:
            self._ask_together(question)
        asked, lines = self.answers.get(question) or (None, None)
        if asked is None or (question.secret and (asked.command, asked.stdin) != (command, stdin)):
            return None
        self.answers.served += 1
        return lines

    def _drop_old(self) -> None:
        now = (self._stage, _changes)
        if self.answers.at == now and time.monotonic() - self.answers.time < FRESH_SECONDS:
            return
        if self.answers.at and self.answers.at[0] == self._stage:
            # Where every operation changes something, to ask everything again after each would be waste: twice as
            # many as the last script was good for.
            self.appetite = max(2, 2 * self.answers.served)
        self.answers = Answers(at=now, time=time.monotonic())

    def _ask_together(self, question: Question) -> None:
        """Ask a question with those that are still to come, where it is not better asked by itself."""
        remembered = self._remembered()
        done = self.answers.asked | self.alone
        if question in done or (self.answers.asked and question not in remembered):
            return
        coming = [item for item in dict.fromkeys([question, *remembered[self.position :]]) if item not in done]
        batch = coming[: self.appetite]
        if len(batch) < 2:
            return
        self.appetite = self.appetite and 4 * self.appetite
        self._send(batch)

    def _send(self, batch: list[Question]) -> None:
        """Ask questions in one script, LOCK before all others; the answers are awaited where they are needed."""
        if self.script is not None:
            self.script.join()
        self.answers.asked.update(batch)
        asked = [item for item in map(Asked.now, batch) if item]
        if not asked:
            return
        self.answers.awaited.update(item.question for item in asked)
        self.script = gevent.spawn(self._ask, self.answers, asked)
        if self.sessions:
            self.sessions.script = self.script

    def _ask(self, answers: Answers, batch: list[Asked]) -> None:
        mark = f"groundwork-{secrets.token_hex(16)}"
        reader = Reader(mark)
        try:
            first = batch.pop(0) if batch[0].question == LOCK else None
            size = max(1, -(-len(batch) // LANES))
            lanes = [self._groups(batch[start : start + size]) for start in range(0, len(batch), size)]
            batch = [*filter(None, [first]), *(item for lane in lanes for _, group in lane for item in group)]
            for received in self._run_script(script(lanes, mark, first)):
                for number, lines in reader.read(received):
                    item = batch[number - 1]
                    if lines is None:
                        self.alone.add(item.question)
                    else:
                        answers.given[item.question] = (item, lines)
                    answers.came(item.question)
        except (SSHException, OSError, EOFError) as error:
            logger.debug("%s: questions not answered together: %s", self.host.name, error)
        finally:
            if reader.noise:
                # Each command's output would have it: what pyinfra makes of that is what counts.
                logger.debug("%s: its shell speaks before it is asked: %s", self.host.name, reader.noise[:200])
                self.alone.update(item.question for item in batch)
                answers.given.clear()
            else:
                self.alone.update(item.question for item in batch[reader.last :][:1])
            answers.came(*answers.awaited)

    def _groups(self, batch: list[Asked]) -> list[Group]:
        groups: dict[str, list[Asked]] = {}
        for item in batch:
            groups.setdefault(json.dumps(item.question.around), []).append(item)
        return [(self._shell(json.loads(around)), group) for around, group in groups.items()]

    def _shell(self, arguments: dict[str, Any]) -> str:
        """The command that starts a shell as whom the questions are asked, which reads its script from standard input."""
        return make_unix_command_for_host(self.state, self.host, StringCommand("sh"), **arguments).get_raw_value()

    def _run_script(self, text: str) -> Iterator[bytes]:
        self.scripts += 1
        channel = self.client.get_transport().open_session()
        try:
            # Each question ends in time; that they all do, one after another, is seen by what they say.
            channel.settimeout(2 * QUESTION_SECONDS)
            channel.exec_command("sh")
            channel.sendall(text.encode())
            channel.shutdown_write()
            while received := channel.recv(1 << 16):
                yield received
        finally:
            channel.close()


class _Lost:
    """Has a connection that is lost be a command that failed, and says so: where an operation asks by itself, pyinfra would end
    the run for all hosts, with a traceback."""

    answer: tuple[bool, CommandOutput]

    def __enter__(self) -> _Lost:
        return self

    def __exit__(self, kind, error, trace) -> bool:
        if not isinstance(error, (OSError, SSHException, EOFError)) or isinstance(error, TimeoutError):
            return False
        said = f"the connection was lost: {error or type(error).__name__}"
        self.answer = (False, CommandOutput([OutputLine("stderr", said)]))
        return True


@contextmanager
def _changing() -> Iterator[None]:
    """What was asked before it, or while it runs, holds no longer."""
    global _changes
    _changes += 1
    try:
        yield
    finally:
        _changes += 1


# In pyinfra's place


def _unsupported() -> str | None:
    """What is not as it was in the version of pyinfra that this was written for."""
    if not PYINFRA.startswith("3.10."):
        return f"pyinfra is {PYINFRA}, and not 3.10"
    return None if "_get_fact" in facts.get_fact.__code__.co_names else "pyinfra.api.facts.get_fact is another one"


_pyinfras_init = Host.init
_pyinfras_get_fact = facts._get_fact


def _init(self: Host, state: State) -> None:
    """Host.init, which makes the connector."""
    if self.connector_cls is ssh.SSHConnector and self.data.get(SETTING) != "ssh":
        self.connector_cls = Connector
    _pyinfras_init(self, state)
    if isinstance(self.connector, Connector):
        if not any(isinstance(handler, _Ends) for handler in state.callback_handlers):
            state.add_callback_handler(_Ends())


def _get_fact(state: State, item: Host, *arguments, **more):
    """facts._get_fact, which runs a fact's command."""
    with asking(item):
        return _pyinfras_get_fact(state, item, *arguments, **more)


class _Ends(BaseStateCallback):
    """Writes down what was asked of a host when the run leaves it."""

    @staticmethod
    def host_disconnect(state, host):
        if not isinstance(host.connector, Connector):
            return
        host.connector.remember()
        if file := os.environ.get(EXCHANGES):
            exchanges = host.connector.sessions.taken if host.connector.sessions else 0
            counted = {"host": host.name, "exchanges": exchanges, "batches": host.connector.scripts}
            with open(file, "a") as out:
                out.write(json.dumps(counted) + "\n")
