"""Training: its units, what is refused, and the script that runs a job and publishes its model."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

import operations.report
from facts.units import Unit, UnitFiles, Units
from groundwork.preflight import render_errors
from groundwork.rows import File
from groundwork.secrets import Secret
from groundwork import ROOT
from groundwork.templates import render
from groundwork.topology import SettingsError
from operations import service
from operations.service import Service
from tasks import training
from tasks.training import Settings
from tests.unit.conftest import SYSTEMS, make_topology

MONGODB = {"mongodb_users": [{"name": "grid_user", "database": "urban_grid_ai"}]}
FORECAST = {"name": "forecast", "command": ["python", "-m", "forecast.train"], "model": "load"}


def on(groups=("training", "mongodb", "redis"), **data):
    """Settings and host of training jobs."""
    given = {"training_source": "examples/forecast", "training_jobs": [FORECAST], **MONGODB, **data}
    here = make_topology({"one": (list(groups), given)}).hosts["one"]
    return here.settings(Settings), here


def rendered(settings, here, name: str) -> str:
    row = next(row for row in settings.files(here) if row.path.endswith(name))
    return render(row, settings, here, lambda name: f"value of {name}").decode()


def unit(settings, here, name: str) -> configparser.RawConfigParser:
    found = configparser.RawConfigParser(strict=False)
    found.optionxform = str
    found.read_string(rendered(settings, here, name))
    return found


def command(text: str) -> list[str]:
    """The words of the job's command, as systemd reads its line."""
    line = re.search(r"^ExecStart=(.*)$", text, re.MULTILINE).group(1)
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(line)]


def test_the_environment_is_composed_from_the_topology():
    settings, here = on(training_environment={"WANDB_KEY": Secret("training/wandb")}, training_log_level="DEBUG")
    found = settings.variables(here, lambda name: f"value of {name}")
    assert found["MONGO_URI"].startswith("mongodb://grid_user:value%20of%20mongodb%2Fgrid_user@127.0.0.1:27017/urban_grid_ai?")
    assert (found["MONGO_DB"], found["REDIS_HOST"], found["LOG_LEVEL"]) == ("urban_grid_ai", "127.0.0.1", "DEBUG")
    assert found["WANDB_KEY"] == "value of training/wandb"
    assert settings.secrets(here) == [Secret("mongodb/grid_user"), Secret("redis/app"), Secret("training/wandb")]
    assert [row.path for row in settings.files(here) if getattr(row, "secret", False)] == ["/etc/training/environment"]


def test_the_data_are_elsewhere():
    hosts = {"box": (["training", "inference"], {"training_source": "x", "training_jobs": [FORECAST]}), "data": (["mongodb"], MONGODB)}
    topology = make_topology(hosts)
    here = topology.hosts["box"]
    assert "@10.0.0.2:27017/" in here.settings(Settings).variables(here, lambda name: "x")["MONGO_URI"]
    opened = {opening.port: opening.networks(4) for opening in topology.hosts["data"].openings()}
    assert opened[27017] == ["10.0.0.1"]


@pytest.mark.parametrize("codename", [codename for _, codename in SYSTEMS])
def test_everything_renders(make_here, codename):
    job = {**FORECAST, "schedule": "*-*-* 02:30", "report": ["python", "-m", "forecast.report"]}
    data = {"training_source": "examples/forecast", "training_jobs": [job], **MONGODB}
    here = make_here(["training", "mongodb", "inference"], codename=codename, **data)
    settings = here.settings(Settings)
    assert list(render_errors(here, settings)) == []
    assert list(settings.errors(here)) == []


def test_a_job_is_a_unit():
    settings, here = on(training_jobs=[{**FORECAST, "timeout": 7200, "retries": 2, "retry_seconds": 9}], training_keep_versions=3)
    service = unit(settings, here, "training-forecast.service")["Service"]
    assert (service["Type"], service["User"], service["NotifyAccess"]) == ("oneshot", "training", "all")
    assert service["PrivateDevices"] == "yes" and "DeviceAllow" not in service
    assert service["ReadWritePaths"] == "/srv/models/load"
    assert service["MemoryMax"] == f"{here.memory_share('training')}M"
    text = rendered(settings, here, "training-forecast.service")
    for word in ("JOB=forecast", "MODEL=load", "TRAINING_KEEP=3", "TRAINING_TIMEOUT=7200", "TRAINING_RETRIES=2", "TRAINING_RETRY_SECONDS=9"):
        assert word in text.split() or f"Environment={word}" in text, word
    assert "ExecStartPost" not in service and "OnSuccess" not in text
    assert command(text) == ["/usr/local/lib/groundwork/training-run", "python", "-m", "forecast.train"]


def test_a_command_reaches_the_job_word_for_word():
    words = ["sh", "-c", 'echo "$HOME" 100% \\n \'x\' ; true', "", "é"]
    with pytest.raises(SettingsError, match="training_jobs"):
        on(training_jobs=[{**FORECAST, "command": words}])  # no empty word: systemd has none
    words.remove("")
    settings, here = on(training_jobs=[{**FORECAST, "command": words}])
    text = rendered(settings, here, "training-forecast.service")
    assert command(text)[1:] == words
    assert "$$HOME" in text and "100%% " in text  # or systemd would put its own there


def test_with_a_schedule_there_is_a_timer_and_with_a_report_a_unit_for_it():
    settings, here = on(training_jobs=[{**FORECAST, "schedule": "Mon 02:30", "report": ["python", "report.py"]}])
    timer = unit(settings, here, "training-forecast.timer")["Timer"]
    assert (timer["OnCalendar"], timer["Persistent"]) == ("Mon 02:30", "true")
    assert unit(settings, here, "training-forecast.service")["Unit"]["OnSuccess"] == "training-forecast-report.service"
    report = unit(settings, here, "training-forecast-report.service")
    assert report["Service"]["Restart"] == "on-failure" and report["Unit"]["StartLimitIntervalSec"] == "0"
    assert command(rendered(settings, here, "training-forecast-report.service"))[1:] == ["--report", "python", "report.py"]
    assert [item.unit for item in settings.services(here)] == [
        "training-forecast.service", "training-forecast.timer", "training-forecast-report.service"
    ]  # fmt: skip
    assert settings.services(here)[0] == Service("training-forecast.service", enabled=None, batch=True)


def test_with_a_card_it_has_the_cards_devices_and_no_others():
    settings, here = on(["training", "gpu"], gpu_card=True)
    text = rendered(settings, here, "training-forecast.service")
    allowed = re.findall("^DeviceAllow=(.*) rw$", text, re.MULTILINE)
    assert allowed and all(name.startswith("char-nvidia") for name in allowed)
    assert "DevicePolicy=closed" in text and "PrivateDevices" not in text
    assert "Wants=network-online.target groundwork-cuda.service" in text and "mknod" in rendered(settings, here, "groundwork-cuda.service")
    settings, here = on(["training", "gpu"], gpu_card=False)
    assert "PrivateDevices=yes" in rendered(settings, here, "training-forecast.service")
    assert not [row for row in settings.files(here) if "groundwork-cuda" in row.path]


def test_the_role_gpu_knows_what_its_lock_was_built_for(tmp_path):
    (tmp_path / "requirements.txt").write_text("torch==2.9.0+cu128\n")
    settings, here = on(["training", "gpu"], training_source=str(tmp_path), gpu_card=True, gpu_branch=470)
    assert settings.torch_backend() == "cu128" and '"cuda": "12.8"' in settings.metadata(here, settings.jobs[0])
    gpu = here.settings(here.topology.roles["gpu"])
    assert "training: its lock has torch for CUDA 12.8, which needs driver 525" in "\n".join(gpu.errors(here))


def test_inference_is_told_where_it_runs_here():
    settings, here = on(groups=("training", "inference"))
    assert "try-reload-or-restart --no-block inference.service" in rendered(settings, here, "training-forecast.service")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"training_source": None}, "training_source is not set"),
        ({"training_source": "examples/frontend"}, "training_requirements names another"),
        ({"training_jobs": []}, "training_jobs is not set"),
        ({"training_jobs": [FORECAST, {**FORECAST, "model": "other"}]}, "two jobs have the name 'forecast'"),
        ({"training_jobs": [FORECAST, {**FORECAST, "name": "other"}]}, "two jobs have the model 'load'"),
        ({"training_jobs": [{**FORECAST, "model": None, "report": ["x"]}]}, "forecast has report, and no model"),
        ({"training_mongodb_user": "nobody"}, "training_mongodb_user = 'nobody' is none of mongodb_users (grid_user)"),
        ({"mongodb_users": []}, "training_mongodb_user and training_mongodb_database are not set"),
    ],
)
def test_what_is_refused_with_a_sentence(data, said):
    settings, here = on(**data)
    assert said in "\n".join(settings.errors(here))


@pytest.mark.parametrize(
    "job",
    [
        {"name": "forecast"},
        {**FORECAST, "command": []},
        {**FORECAST, "command": "python -m x"},
        {**FORECAST, "command": ["a\nb"]},
        {**FORECAST, "name": "../x"},
        {**FORECAST, "name": "forecast-report"},
        {**FORECAST, "model": "Load"},
        {**FORECAST, "schedule": "daily\nExecStart=x"},
        {**FORECAST, "retries": -1},
        {**FORECAST, "scedule": "daily"},
    ],
)
def test_jobs_that_are_refused(job):
    with pytest.raises(SettingsError, match="training_jobs"):
        on(training_jobs=[job])


SCHEDULES = ["*-*-* 02:30", "Mon 02:30", "Mon..Fri 10:00:30 Europe/Berlin", "daily", "weekly UTC", "Sat,Sun *-*-1..7 18:00", "*:0/15"]


@pytest.mark.parametrize("systemd", ["/usr/bin/systemd-analyze", None])
def test_a_schedule_that_systemd_does_not_know_is_told_before_a_host_is_touched(monkeypatch, systemd):
    """With a systemd on the controller, and without, as on macOS."""
    if systemd and not shutil.which("systemd-analyze"):
        pytest.skip("there is no systemd here")
    monkeypatch.setattr(training.shutil, "which", lambda name: systemd)
    training._calendar.cache_clear()
    for schedule in SCHEDULES:
        on(training_jobs=[{**FORECAST, "schedule": schedule}])
    for schedule in ("every day", "at 02:30", "2 o'clock", "Mon bananas"):
        with pytest.raises(SettingsError, match=r"training_jobs\[0\]\['schedule'\] = .*: must be a time as systemd.time"):
            on(training_jobs=[{**FORECAST, "schedule": schedule}])
    training._calendar.cache_clear()


# What is declared no more


@pytest.fixture
def left(monkeypatch):
    """`left({unit: (is-enabled's word, state)}, declared)`: what `only` does on a host with these units."""

    def run(units: dict[str, tuple[str, str]], *declared: str) -> list[str]:
        answers = {UnitFiles: sorted(units), Units: {name: Unit(True, active, enabled) for name, (enabled, active) in units.items()}}
        fake = SimpleNamespace(get_fact=lambda fact, **_: answers[fact], log=lambda text: None)
        monkeypatch.setattr(service, "host", fake)
        monkeypatch.setattr(operations.report, "host", fake)
        return [str(command) for command in service.only._inner("training-*", declared)]

    return run


def test_a_job_that_is_taken_out_while_it_runs_is_not_killed(left):
    units = {"training-a.service": ("static", "activating"), "training-a.timer": ("enabled", "active"), "training-a-report.service": ("enabled", "inactive")}
    commands = left(units)
    assert not [command for command in commands if "training-a.service" in command]
    for name in ("training-a.timer", "training-a-report.service"):
        assert f"systemctl disable --quiet --now {name}" in commands and f"rm -f /etc/systemd/system/{name}" in commands
    # The same later: nothing to change while it runs, and its unit goes after that.
    assert left({"training-a.service": ("static", "activating")}) == []
    assert left({"training-a.service": ("static", "inactive")}) == ["rm -f /etc/systemd/system/training-a.service", "systemctl daemon-reload"]
    assert left({"training-a.service": ("static", "inactive")}, "training-a.service") == []


# The script


class Runs:
    """files/training/run, as the unit would start it, in a release below a directory of the test's."""

    def __init__(self, root: Path):
        self.release, self.model = root / "srv/releases/0123456789abcdef", root / "models/load"
        self.release.mkdir(parents=True)
        self.model.mkdir(parents=True)
        (root / "srv/environments/fedcba9876543210/bin").mkdir(parents=True)
        (self.release / ".venv").symlink_to(root / "srv/environments/fedcba9876543210")
        (root / "srv/current").symlink_to(self.release)
        self.current = root / "srv/current"
        self.environment = {
            **os.environ, "JOB": "forecast", "MODEL": "load", "MODELS": str(root / "models"), "TRAINING_KEEP": "2",
            "TRAINING_RETRIES": "0", "TRAINING_RETRY_SECONDS": "0", "TRAINING_TIMEOUT": "20", "TRAINING_REPORTS": "",
            "TRAINING_METADATA": json.dumps({"job": "forecast", "revision": 'a"b', "cuda": None})[1:-1],
        }  # fmt: skip

    def __call__(self, *words: str, report: bool = False, command: list[str] | None = None, **changed: str) -> subprocess.CompletedProcess:
        script = ["sh", str(ROOT / "files/training/run"), *(["--report"] if report else []), *(command or ["sh", "-ec", *words])]
        return subprocess.run(
            script, cwd=self.current, env={**self.environment, **changed}, capture_output=True, text=True, timeout=60
        )

    @property
    def versions(self) -> list[str]:
        return sorted(path.name for path in self.model.iterdir() if not path.name.startswith(".") and path.name != "current")


@pytest.fixture
def runs(tmp_path) -> Runs:
    return Runs(tmp_path)


WRITES = 'echo "$0" >"$MODEL_DIRECTORY/model"'


def test_what_a_job_wrote_is_published(runs):
    done = runs(WRITES + "; mkdir -m 700 $MODEL_DIRECTORY/inner", "one")
    assert done.returncode == 0, done.stderr
    (version,) = runs.versions
    assert re.fullmatch(r"\d{8}T\d{6}Z", version) and f"published load {version}" in done.stderr
    assert os.readlink(runs.model / "current") == version
    assert (runs.model / "current/model").read_text() == "one\n"
    assert (runs.model / "current/inner").stat().st_mode & 0o777 == 0o755
    known = json.loads((runs.model / "current/metadata.json").read_text())
    assert known | {"started": 0, "ended": 0} == {
        "version": version, "release": "0123456789abcdef", "environment": "fedcba9876543210", "started": 0, "ended": 0,
        "job": "forecast", "revision": 'a"b', "cuda": None,
    }  # fmt: skip
    assert not (runs.model / ".staging").exists()


def test_the_environments_programs_come_first(runs):
    program = runs.release / ".venv/bin/own"
    program.write_text("#!/bin/sh\necho from the environment >$MODEL_DIRECTORY/model\n")
    program.chmod(0o755)
    assert runs("own").returncode == 0
    assert (runs.model / "current/model").read_text() == "from the environment\n"


@pytest.mark.parametrize(
    ("job", "said"),
    [("echo half >$MODEL_DIRECTORY/model; exit 3", "status 3"), ("true", "wrote nothing"), ("exec nosuch", "status 127")],
)
def test_a_job_that_fails_leaves_the_model(runs, job, said):
    assert runs(WRITES, "good").returncode == 0
    before = runs.versions
    done = runs(job)
    assert done.returncode != 0 and said in done.stderr and "as it was" in done.stderr
    assert runs.versions == before and (runs.model / "current/model").read_text() == "good\n"


def test_a_model_in_use_is_named_where_there_is_one(runs):
    assert "as it was" not in runs("exit 3").stderr and "as it was" not in runs("true").stderr
    assert "failed: status 3 (try 1)\n" in runs("exit 3", MODEL="").stderr


def test_a_command_that_is_not_there_is_named(runs):
    done = runs(command=["pyton", "-m", "forecast.train"], TRAINING_RETRIES="3")
    assert done.returncode == 127 and "failed: the command 'pyton' is not there (try 1)" in done.stderr


def test_what_a_killed_job_left_is_gone_with_the_next(runs):
    (runs.model / ".staging").mkdir()
    (runs.model / ".staging/half").write_text("")
    assert runs(WRITES, "x").returncode == 0
    assert sorted(path.name for path in (runs.model / "current").iterdir()) == ["metadata.json", "model"]


def test_it_is_tried_again_and_starts_with_an_empty_directory(runs):
    job = f"{WRITES}; touch $MODEL_DIRECTORY/try$$; [ -e ../../failed ] || {{ touch ../../failed; exit 75; }}"
    assert runs(job, "x").returncode == 75
    (runs.release / "../../failed").unlink()
    done = runs(job, "x", TRAINING_RETRIES="1")
    assert done.returncode == 0 and "Try 2 of 2 comes in 0 s" in done.stderr
    assert len(list((runs.model / "current").glob("try*"))) == 1


@pytest.mark.parametrize(("job", "said"), [("exit 78", "status 78"), ("sleep 30", "more than 1 s"), ("exec nosuch", "status 127")])
def test_where_trying_again_is_no_use_it_is_not_tried_again(runs, job, said):
    done = runs(job, TRAINING_RETRIES="3", TRAINING_RETRY_SECONDS="60", TRAINING_TIMEOUT="1")
    assert done.returncode != 0 and f"failed: {'status' if 'status' in said else 'it ran for'}" in done.stderr and said in done.stderr


def test_old_versions_go_but_never_the_current_one(runs):
    for number in range(2):
        assert runs(WRITES, str(number)).returncode == 0
    # A clock that was ahead: the new version is the current one, whatever the names say.
    for number, version in enumerate(runs.versions):
        (runs.model / version).rename(runs.model / f"2099010{number + 1}T000000Z")
    for number in range(2):
        assert runs(WRITES, f"new {number}").returncode == 0
        assert (runs.model / "current/model").read_text() == f"new {number}\n"
        assert runs.versions == [os.readlink(runs.model / "current"), "20990101T000000Z", "20990102T000000Z"]


def test_old_versions_stay_until_they_are_reported(runs):
    for number in range(3):
        assert runs(WRITES, str(number), TRAINING_REPORTS="yes").returncode == 0
    first, second, third = runs.versions
    for version in (first, third):
        (runs.model / version / ".reported").touch()
    assert runs(WRITES, "3", TRAINING_REPORTS="yes").returncode == 0
    assert runs.versions[:2] == [second, third] and len(runs.versions) == 3


def test_a_job_without_a_model_gets_no_directory(runs):
    done = runs('[ -z "${MODEL_DIRECTORY:-}" ]', MODEL="")
    assert done.returncode == 0, done.stderr
    assert list(runs.model.iterdir()) == []


def test_it_stays_in_the_release_that_it_started_in(runs):
    new = runs.release.with_name("new")
    new.mkdir()
    flip = f"ln -sfn {new} {runs.current}; pwd -P >$MODEL_DIRECTORY/where"
    assert runs(flip).returncode == 0
    assert (runs.model / "current/where").read_text().strip() == str(runs.release)
    assert json.loads((runs.model / "current/metadata.json").read_text())["release"] == runs.release.name


def test_each_version_is_reported_once_and_again_after_a_failure(runs):
    for number in range(2):
        assert runs(WRITES, str(number)).returncode == 0
    told = runs.release / "told"
    tell = f'[ "$(cat $MODEL_DIRECTORY/model)" != 0 ] || [ -e {told}.ok ] || exit 1; basename $MODEL_DIRECTORY >>{told}'
    assert runs(tell, report=True).returncode == 1  # the first is refused, and the second told all the same
    Path(f"{told}.ok").touch()
    assert runs(tell, report=True).returncode == 0
    assert runs(tell, report=True).returncode == 0
    assert told.read_text().split() == runs.versions[::-1]


def test_a_version_that_is_published_while_another_is_reported_is_reported_too(runs):
    assert runs(WRITES, "0").returncode == 0
    told = runs.release / "told"
    published = runs.model / "20990101T000000Z"
    assert runs(f"mkdir -p {published}; basename $MODEL_DIRECTORY >>{told}", report=True).returncode == 0
    assert told.read_text().split() == runs.versions and published.name in runs.versions


def _kills_after_a_second(runs) -> None:
    """`timeout`, with less patience than the half minute of the script."""
    program = runs.release / ".venv/bin/timeout"
    program.write_text('#!/bin/sh\nshift\nexec /usr/bin/timeout --kill-after=1 "$@"\n')
    program.chmod(0o755)


def test_a_job_that_does_not_heed_its_timeout_is_not_tried_again(runs):
    _kills_after_a_second(runs)
    deaf = "trap '' TERM; for n in $(seq 30); do sleep 1; done"
    done = runs(deaf, TRAINING_RETRIES="3", TRAINING_TIMEOUT="1")
    assert done.returncode == 124 and "failed: it ran for more than 1 s (try 1)" in done.stderr


def test_a_job_that_another_killed_is_tried_again(runs):
    done = runs("kill -KILL $$", TRAINING_RETRIES="1")
    assert done.returncode == 137 and "failed: status 137 (try 2)" in done.stderr


def test_the_script_is_the_one_that_is_deployed():
    settings, here = on()
    row = next(row for row in settings.files(here) if isinstance(row, File) and row.source == "training/run")
    assert (row.path, row.mode) == ("/usr/local/lib/groundwork/training-run", "755")
