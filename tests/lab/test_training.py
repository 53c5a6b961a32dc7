"""A training job reads MongoDB, publishes a model, and inference answers from it; what goes wrong leaves the model."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time

import pytest
from tests.lab.conftest import ROOT, Lab, changed

from groundwork.templates import jinja

READINGS = 3000
INVENTORY = """
from lab import lab_host
from tests.lab.stack import STACK

_host = lab_host(
    "mlbox",
    "10.87.0.181",
    **STACK,
    base_first_run_upgrade=False,
    inference_source="examples/forecast",
    inference_module="forecast.api:app",
    inference_models=["load"],
    training_source=__SOURCE__,
    # Short questions, so that there is progress to be seen, and little patience.
    training_environment={"FORECAST_BATCH": 10, "FORECAST_MONGO_SECONDS": 2, "FORECAST_PATIENCE_SECONDS": 5},
    training_jobs=__JOBS__,
)
mongodb = [_host]
inference = [_host]
training = [_host]
"""

FORECAST = {
    "name": "forecast", "command": ["python", "-m", "forecast.train"], "report": ["python", "-m", "forecast.report"],
    "model": "load", "schedule": "*-*-* 02:30", "retry_seconds": 1, "retries": 9,
}  # fmt: skip
MOODY = {
    "name": "moody", "command": ["sh", "-c", "date +%s.%N >$MODEL_DIRECTORY/model; test -e ~/good"],
    "model": "moody", "retries": 1, "retry_seconds": 1, "schedule": "daily",
}  # fmt: skip
SLOW = {"name": "slow", "command": ["sh", "-c", "systemd-notify --status='half way'; until test -e ~/go; do sleep 0.2; done"]}
CURIOUS = {"name": "curious", "command": ["sh", "-c", "head -c 1 /dev/probe"], "retries": 0}


class Box(Lab):
    """The one host of this story."""

    def written(self, *jobs: dict) -> None:
        """The inventory, with these jobs."""
        text = INVENTORY.replace("__SOURCE__", repr(str(self.source))).replace("__JOBS__", repr(list(jobs)))
        open(self.inventory, "w").write(text)

    @property
    def source(self):
        return ROOT.joinpath(self.inventory).with_name("program")

    def root(self, command: str, check: bool = True) -> str:
        return self.ssh("mlbox", f"sudo sh -c {shlex.quote(command)}", check=check).stdout

    def program(self, *words: str) -> str:
        """Output of the program's python, as a job has it."""
        given = "-p User=training -p EnvironmentFile=/etc/training/environment -p WorkingDirectory=/srv/training/current"
        return self.root(f"systemd-run -q --pipe --wait {given} /srv/training/current/.venv/bin/python {shlex.join(words)}")

    def show(self, unit: str, name: str) -> str:
        return self.root(f"systemctl show -P {name} {unit}").strip()

    def until(self, condition: str, seconds: int = 30) -> None:
        self.root(f"for n in $(seq {seconds * 5}); do {condition} && exit; sleep 0.2; done; systemctl --no-pager status 'training-*'; exit 1")

    def train(self, job: str = "forecast") -> str:
        """Start a job as its user would; the version that is current afterwards."""
        self.root(f"systemctl start training-{job}.service")
        return self.current()

    def current(self, model: str = "load") -> str:
        return self.root(f"readlink /srv/models/{model}/current").strip()

    def ask(self, path: str, question: dict | None = None) -> tuple[int, dict]:
        body = f"-H 'Content-Type: application/json' -d {shlex.quote(json.dumps(question))}" if question else ""
        answer, _, status = self.root(f"curl -s -w '|%{{http_code}}' {body} http://127.0.0.1:8100{path}").rpartition("|")
        return int(status), json.loads(answer)

    def models(self) -> list[dict]:
        """What MongoDB knows of versions."""
        return json.loads(self.program("-c", "import json; from forecast.store import database; print(json.dumps(list(database().models.find())))"))


PREDICT = {"meter_id": "meter-1", "timestamp": "2026-11-24T12:00:00Z"}


@pytest.fixture(scope="module")
def box(tmp_path_factory) -> Box:
    """A host with MongoDB, inference and training, and some readings."""
    directory = tmp_path_factory.mktemp("training")
    stack = Box(str(directory / "training_lab.py"))
    shutil.copytree(ROOT / "examples/forecast", stack.source)
    stack.written(FORECAST, MOODY, SLOW, CURIOUS)
    stack.fresh()
    stack.deploy()
    stack.program("-m", "forecast.seed", str(READINGS))
    return stack


def test_without_a_model_inference_says_so(box):
    status, said = box.ask("/predict", PREDICT)
    assert status == 503 and "there is no model yet in /srv/models/load/current" in said["detail"]
    assert box.ask("/health") == (200, {"status": "ok"})


def test_a_job_is_seen_at_work_and_its_model_answers(box):
    box.root("systemctl start --no-block training-forecast.service")
    progress = box.root(
        "for n in $(seq 300); do systemctl show -P StatusText -P ActiveState training-forecast | paste -sd'|'; "
        "systemctl is-active -q training-forecast-report && break; sleep 0.05; done | uniq"
    )
    assert f" of {READINGS} readings (" in progress and "|activating" in progress
    box.until("[ -e /srv/models/load/current/.reported ]")
    version = box.current()
    status, answer = box.ask("/predict", PREDICT)
    assert status == 200 and answer["version"] == version and len(answer["values"]) == 1
    (known,) = box.models()
    assert (known["_id"], known["host"], known["job"]) == (f"load/{version}", "mlbox", "forecast")
    assert known["metrics"]["readings"] == READINGS
    assert known["metrics"]["mean_absolute_error"] < known["metrics"]["mean_absolute_error_of_the_mean"] / 2
    assert "read all 3000 readings" in box.root("journalctl -o cat -u training-forecast")


def test_a_second_run_changes_nothing(box):
    assert box.changes() == []


def test_the_host_is_what_its_groups_promise(box):
    where = ["test_training.py", "test_inference.py", "test_base.py::test_each_unit_of_ours_is_hardened"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *(f"tests/host/{name}" for name in where), "--inventory", box.inventory],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-6000:]


def test_a_second_version_takes_over(box):
    first = box.current()
    second = box.train()
    assert second > first
    for _ in range(50):
        if box.ask("/model")[1]["version"] == second:
            break
        time.sleep(0.1)
    assert box.ask("/predict", PREDICT)[1]["version"] == second


def test_without_mongodb_nothing_is_lost(box):
    """A job waits, and is tried again where it has waited enough; a version is reported when that can be done."""
    before = box.current()
    box.root("systemctl stop mongod; rm /srv/models/load/current/.reported; systemctl start --no-block training-forecast training-forecast-report")
    box.until("journalctl -o cat -u training-forecast | grep -q 'MongoDB can.t be reached'")
    box.until("journalctl -o cat -u training-forecast | grep -q 'Try 2 of 10 comes in'")
    box.until("journalctl -o cat -u training-forecast-report | grep -q 'not reported yet'")
    assert box.current() == before and box.ask("/predict", PREDICT)[1]["version"] == before
    box.root("systemctl start mongod")
    box.until(f"[ $(readlink /srv/models/load/current) != {before} ] && [ -e /srv/models/load/{before}/.reported ] && [ -e /srv/models/load/current/.reported ]")
    assert {known["version"] for known in box.models()} >= {before, box.current()}


def test_a_job_that_fails_leaves_the_model(box):
    box.root("touch /var/lib/training/good; systemctl start training-moody; rm /var/lib/training/good")
    before = box.current("moody"), box.root("cat /srv/models/moody/current/model")
    box.root("! systemctl start training-moody")
    assert (box.current("moody"), box.root("cat /srv/models/moody/current/model")) == before
    said = box.root("journalctl -o cat -u training-moody")
    assert "failed: status 1 (try 2). The model in use is as it was" in said
    box.root("touch /var/lib/training/good; systemctl start training-moody")
    assert box.current("moody") > before[0] and not box.root("ls -A /srv/models/moody | grep staging || true")


def test_a_job_has_no_device(box):
    """Without a card none is there; with one, what is not NVIDIA's is refused, though it is there."""
    # loop-control, by another name: what can open it is told that it can't be read.
    assert "Invalid argument" in box.root("mknod -m 666 /dev/probe c 10 237; head -c 1 /dev/probe 2>&1 || true")
    box.root("! systemctl start training-curious")
    assert "cannot open '/dev/probe' for reading: No such file" in box.root("journalctl -o cat -u training-curious")
    with_card = jinja.get_template("program/hardened.j2").render(card=True)
    drop_in = "/run/systemd/system/training-curious.service.d"
    box.root(f"mkdir -p {drop_in}; printf '[Service]\\nPrivateDevices=no\\n%s' {shlex.quote(with_card)} >{drop_in}/card.conf; systemctl daemon-reload")
    box.root("! systemctl start training-curious")
    assert "cannot open '/dev/probe' for reading: Operation not permitted" in box.root("journalctl -o cat -u training-curious")
    box.root(f"rm -r {drop_in}; systemctl daemon-reload; systemctl reset-failed")


def test_a_deploy_leaves_a_job_that_runs_alone(box):
    box.root("systemctl start --no-block training-slow")
    box.until("[ -n \"$(systemctl show -P StatusText training-slow)\" ]")
    assert box.show("training-slow", "StatusText") == "half way"
    process, release = box.show("training-slow", "MainPID"), box.root("readlink /srv/training/current")
    box.source.joinpath("new.txt").write_text("a new release")
    box.written(FORECAST, SLOW)  # and two jobs are gone
    done = box.pyinfra("-y", box.inventory, "tasks.training.training")
    assert "training-slow.service: runs, and is left alone" in done.stderr
    assert box.show("training-slow", "MainPID") == process and box.root("readlink /srv/training/current") != release
    assert box.root(f"readlink /proc/{process}/cwd").strip() == f"/srv/training/{release.strip()}"
    assert box.root("ls /etc/systemd/system/training-*").split() == [
        f"/etc/systemd/system/training-{name}"
        for name in ("forecast-report.service", "forecast.service", "forecast.timer", "slow.service")
    ]
    assert "moody" not in box.root("systemctl list-timers --all")
    box.root("touch /var/lib/training/go")
    box.until("[ $(systemctl show -P SubState training-slow) = dead ]")
    assert box.show("training-slow", "Result") == "success"
    again = box.pyinfra("-y", "--json", box.inventory, "tasks.training.training")
    assert changed(json.loads(again.stdout)) == []


def test_a_job_that_is_taken_out_while_it_runs_ends_by_itself(box):
    """It publishes its version, and then its unit goes."""
    lasting = {"name": "lasting", "model": "lasting", "schedule": "daily",
               "command": ["sh", "-c", "until test -e ~/enough; do sleep 0.2; done; echo 1 >$MODEL_DIRECTORY/model"]}  # fmt: skip
    box.written(FORECAST, lasting)
    box.pyinfra("-y", box.inventory, "tasks.training.training")
    box.root("systemctl start --no-block training-lasting")
    process = box.show("training-lasting", "MainPID")
    box.written(FORECAST)
    done = box.pyinfra("-y", box.inventory, "tasks.training.training")
    assert "training-lasting.service: is declared no more, and runs" in done.stderr
    assert "lasting" not in box.root("systemctl list-timers --all")
    assert process not in ("", "0") and box.show("training-lasting", "MainPID") == process
    again = box.pyinfra("-y", "--json", box.inventory, "tasks.training.training")
    assert changed(json.loads(again.stdout)) == [] and box.show("training-lasting", "MainPID") == process
    box.root("touch /var/lib/training/enough")
    box.until("[ $(systemctl show -P SubState training-lasting) = dead ]")
    assert box.show("training-lasting", "Result") == "success" and box.current("lasting")
    done = box.pyinfra("-y", box.inventory, "tasks.training.training")
    assert "training-lasting.service: removed" in done.stderr and "lasting" not in box.root("ls /etc/systemd/system")
