"""The bench: its proxy's latency, its states, how it reads what tools say, and the page that it writes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import cases, check, measure, report, results, states, tools
from bench.latency import Latency, Proxy
from bench.turns import judge
from lab import cgroups

ROOT = Path(__file__).resolve().parents[2]


# The proxy


async def _echo(reader, writer):
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.write(b"end")
    writer.close()


def _through_proxy(rtt_ms, talk):
    """Run `talk(reader, writer, proxy, connected)` against an echo server behind a proxy."""

    async def run():
        server = await asyncio.start_server(_echo, "127.0.0.1", 0)
        proxy = Proxy(Latency(rtt_ms / 2000), "127.0.0.1", server.sockets[0].getsockname()[1])
        port = await proxy.start()
        begin = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        return await asyncio.wait_for(talk(reader, writer, proxy, begin), 20)

    return asyncio.run(run())


def test_each_answer_takes_a_round_trip_and_the_first_one_more():
    async def talk(reader, writer, proxy, begin):
        taken = []
        for _ in range(3):
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            taken.append(time.monotonic() - begin)
            begin = time.monotonic()
        return taken, proxy.turns

    (first, *others), turns = _through_proxy(100, talk)
    assert 0.2 <= first < 0.3  # TCP's handshake, and the answer
    assert all(0.1 <= taken < 0.15 for taken in others)
    assert turns == 2  # it spoke first, and twice after an answer


def test_without_latency_nothing_is_held_back():
    async def talk(reader, writer, proxy, begin):
        for _ in range(20):
            writer.write(b"hello")
            await reader.readexactly(5)
        return time.monotonic() - begin

    assert _through_proxy(0, talk) < 0.1


def test_much_at_once_keeps_its_order_and_pays_once():
    sent = os.urandom(8 << 20)

    async def talk(reader, writer, proxy, begin):
        async def speak():
            for start in range(0, len(sent), 10_000):
                writer.write(sent[start : start + 10_000])
                await writer.drain()
            writer.write_eof()

        speaking = asyncio.create_task(speak())
        got = await reader.read(-1)
        await speaking
        return got, time.monotonic() - begin

    got, taken = _through_proxy(100, talk)
    assert got == sent + b"end"  # what comes after the end of what was sent comes, too
    assert taken < 3


def test_a_host_that_is_not_there_ends_the_connection():
    async def run():
        proxy = Proxy(Latency(), "127.0.0.1", 1)
        reader, _ = await asyncio.open_connection("127.0.0.1", await proxy.start())
        return await asyncio.wait_for(reader.read(), 5)

    assert asyncio.run(run()) == b""


def test_the_process_obeys_and_ends_with_its_input():
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.latency", "127.0.0.1:1:0", "127.0.0.1:2:0"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    said, _ = process.communicate("delay 50\nturns\n", timeout=20)
    ports, delay, turns = map(json.loads, said.splitlines())
    assert len(set(ports)) == 2 and delay == "50" and turns == [0, 0]
    assert process.returncode == 0


# The states


def test_there_are_200_and_a_host_is_asked_for_each():
    assert sum(map(len, states.read().values())) == 200
    assert sum(map(len, check.expected().values())) == 200


def test_another_number_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "states.yml"
    file.write_text(states.FILE.read_text().replace("system_groups: [content, ", "system_groups: ["))
    monkeypatch.setattr(states, "FILE", file)
    with pytest.raises(ValueError, match="199 states"):
        states.read()


def test_every_group_of_a_user_is_declared():
    wanted = states.read()
    assert {group for user in wanted["users"] for group in user["groups"]} == set(wanted["system_groups"])


# What the tools say

PYINFRA = """
--> Results:
    Operation                Hosts   Success   Error   No Change
    Packages                 1       1         -       -
    Grand total              21      {}        {}       20
"""
ANSIBLE = "web1                       : ok=15   changed={}    unreachable={}    failed={}    skipped=0    rescued=0    ignored=0\n"


def _start(output, changed):
    return tools.Start([], ROOT, changed), measure.Cost(0, 1, 1, 1, output)


@pytest.mark.parametrize("success, changes", [("-", 0), ("12", 12)])
def test_pyinfras_changes(success, changes):
    assert tools.pyinfra_changed(PYINFRA.format(success, "-")) == changes


def test_ansibles_changes():
    assert tools.ansible_changed(ANSIBLE.format(2, 0, 0) + ANSIBLE.format(3, 0, 0)) == 5


@pytest.mark.parametrize(
    "read, output",
    [
        (tools.pyinfra_changed, PYINFRA.format("-", "1")),
        (tools.pyinfra_changed, "Traceback"),
        (tools.ansible_changed, ANSIBLE.format(0, 1, 0)),
        (tools.ansible_changed, ANSIBLE.format(0, 0, 1)),
        (tools.ansible_changed, "ERROR! no hosts"),
    ],
)
def test_a_failure_is_no_result(read, output):
    with pytest.raises(tools.Wrong):
        read(output)


def test_a_run_that_changes_what_is_right_does_not_count():
    start, cost = _start(ANSIBLE.format(1, 0, 0), tools.ansible_changed)
    with pytest.raises(tools.Wrong, match="it changed 1 where all was"):
        judge(start, cost, cases.Way("Ansible", tools.ansible))
    assert judge(start, cost, cases.Way("Ansible", tools.ansible, changes=True)) == 1


def test_nor_does_one_that_changes_nothing_where_it_shall():
    start, cost = _start(ANSIBLE.format(0, 0, 0), tools.ansible_changed)
    with pytest.raises(tools.Wrong, match="it changed nothing"):
        judge(start, cost, cases.Way("Ansible", tools.ansible, changes=True))


# What a run costs


@pytest.mark.skipif(os.geteuid() != 0 or not cgroups.root(), reason="control groups need root")
class TestCost:
    def _run(self, program, limit=30.0, given=""):
        return measure.run([sys.executable, "-c", program], ROOT, dict(os.environ), limit, given)

    def test_what_children_use_counts_and_what_they_say_is_kept(self):
        work = "x = bytearray(200 << 20); t = time.process_time()\nwhile time.process_time() < t + 0.4: pass\ntime.sleep(0.8)"
        cost = self._run(f"import subprocess, sys; print(input()); subprocess.run([sys.executable, '-c', '''import time; {work}'''])", given="word\n")
        assert (cost.status, cost.output) == (0, "word\n")
        assert 0.4 <= cost.cpu_seconds < 1.5 and cost.seconds >= 1.2
        assert 200 <= cost.peak_mib < 300

    def test_what_is_left_behind_is_ended_and_not_waited_for(self):
        mark = f"sleep 987.{os.getpid()}"
        cost = self._run(f"import subprocess; subprocess.Popen(['sh', '-c', 'exec {mark}'], start_new_session=True)")
        assert cost.status == 0 and cost.seconds < 5
        assert mark not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout

    def test_what_takes_too_long_is_ended(self):
        cost = self._run("import time; time.sleep(60)", limit=1.0)
        assert cost.timed_out and cost.status != 0 and cost.seconds < 10


# The page


def _row(what, tool, seconds, rtt=50, hosts=1, **more):
    return {**results.row(what, tool, rtt, hosts), "seconds": seconds, "cpu_seconds": seconds, "peak_mib": [80.0], **more}


def _verdicts(*rows):
    return {goal.text: goal.verdict for goal in report.goals(results.Book(list(rows)))}


def test_a_goal_is_judged_by_medians():
    ours = _row(cases.STATES, cases.GROUNDWORK, [2.0, 1.0, 90.0])
    text = "200 states at 50 ms: Ansible's time against ours"
    assert _verdicts(ours, _row(cases.STATES, cases.ANSIBLE, [80.0]))[text] == "reached"
    assert _verdicts(ours, _row(cases.STATES, cases.ANSIBLE, [40.0]))[text] == "**missed**, 2.00 x too slow"
    assert _verdicts(ours)[text] == "not measured"


def test_a_goal_that_is_an_upper_bound():
    floor = _row(cases.STACK, cases.FLOOR, [1.0])
    text = "No change at 50 ms, full stack, `-y`, against the floor"
    assert _verdicts(floor, _row(cases.STACK, cases.GROUNDWORK, [1.5]))[text] == "reached"
    assert _verdicts(floor, _row(cases.STACK, cases.GROUNDWORK, [1.75]))[text] == "**missed** by 0.25 x"


def test_each_further_host_is_counted_from_the_first():
    rows = [_row(cases.STATES, cases.GROUNDWORK, [1.0]), _row(cases.STATES, cases.GROUNDWORK, [50.0], hosts=50)]
    assert _verdicts(*rows)["50 hosts: processor for each further host"] == "**missed** by 0.70 s"
    assert _verdicts(*rows)["50 hosts: memory for each further host"] == "reached"


def test_the_page_tells_what_was_not_measured():
    rows = [_row(cases.STATES, cases.GROUNDWORK, [2.0]), {**results.row(cases.STATES, cases.ANSIBLE, 50, 10), "note": "not measured: too long"}]
    page = "\n".join(report._page(results.Book(rows)))
    assert "- not measured: too long: 200 states, no change: Ansible, 10 hosts at 50 ms." in page
    assert "| Groundwork | 2.00 |" in page


def test_what_is_measured_again_takes_the_place_of_what_was(tmp_path):
    for seconds in ([1.0], [2.0]):
        results.save(tmp_path, "states-1-50", [_row(cases.STATES, "pyinfra", seconds)])
    results.save(tmp_path, "other", [_row(cases.STACK, "pyinfra", [3.0])])
    book = results.Book(results.load(tmp_path))
    assert len(book.rows) == 2 and book.median(cases.STATES, "pyinfra", 50) == 2.0
