"""Training: batch jobs of a Python program, which make versions of models."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import zoneinfo
from collections import Counter
from functools import cache
from typing import Annotated, Iterable

from pydantic import AfterValidator, Field

from groundwork import uris
from groundwork.program import MODELS, ModelName, MongoDBSettings, card_rows, has_card
from groundwork.roles import role
from groundwork.rows import Directory, File, Row
from groundwork.settings import Part, matching
from groundwork.sources import shown
from groundwork.topology import Here
from operations import accounts, files, service
from tasks.packages import install

CONFIGURATION = "/etc/training"
RUN = f"{files.LIB}/training-run"
UNITS = "/etc/systemd/system"


def _no_report(value: str) -> str:
    if value.endswith("-report"):
        raise ValueError("must not end in -report: training-NAME-report.service is the unit that reports of the job NAME")
    return value


_CALENDAR = (
    r"(minute|hour|dai|week|month|quarter|(semi-?|bi-?)?annual|year)ly( .+)?|"
    r"((mon|tue|wed|thu|fri|sat|sun)[a-z,.]* ?)?[-0-9*/,.~:T@ ]*( ?UTC| [a-z]+/[a-z/_+-]+)?"
)
"""Roughly, where nobody knows better."""


@cache
def _calendar(value: str) -> str:
    if shutil.which("systemd-analyze"):
        # Without the tz database it knows no zone.
        text = value if zoneinfo.available_timezones() else re.sub(" [A-Za-z]+/[A-Za-z/_+-]+$", "", value)
        known = subprocess.run(["systemd-analyze", "calendar", "--", text], capture_output=True).returncode == 0
    else:
        known = re.fullmatch(_CALENDAR, value, re.IGNORECASE) is not None
    if not known:
        raise ValueError('must be a time as systemd.time(7) has it ("*-*-* 02:30", "Mon 02:30", "daily"): `systemd-analyze calendar` reads it')
    return value


Line = Annotated[str, matching(r"[^\0\r\n]+", "a text without line breaks")]
Calendar = Annotated[Line, AfterValidator(_calendar)]
JobName = Annotated[ModelName, AfterValidator(_no_report)]


class Job(Part):
    """A job: the unit training-<name>.service, in the current release, as the user training."""

    name: JobName
    """Its name, and its unit's."""
    command: list[Line] = Field(min_length=1)
    """A program and its arguments; the environment's bin comes first in PATH: ["python", "-m", "forecast.train"]."""
    schedule: Calendar | None = None
    """When it starts by itself, as systemd.time(7) has it: "*-*-* 02:30" (OnCalendar), by the host's clock
    (base_timezone), or with a zone: "*-*-* 02:30 UTC". What was missed while the host was off is made up for. None:
    when somebody starts it."""
    model: ModelName | None = None
    """The model whose versions it makes, from what it writes into MODEL_DIRECTORY; None for a job that makes none."""
    report: list[Line] | None = None
    """Command that tells the database of a version once it is published, from MODEL_DIRECTORY; tried until it
    succeeds, for each version."""
    timeout: int = Field(default=86400, ge=1)
    """Seconds that one try may take."""
    retries: int = Field(default=3, ge=0)
    """How often a job that fails is tried again. (Not when it ran into its timeout, is not to be found, or ends with
    status 78: its configuration is wrong.)"""
    retry_seconds: int = Field(default=60, ge=1)
    """Seconds until the next try."""

    @property
    def unit(self) -> str:
        """Its unit, without the suffix."""
        return f"training-{self.name}"


class Settings(MongoDBSettings):
    """Training jobs."""

    role = "training"
    mark = "/etc/training/environment"
    memory_weight = 4
    memory_minimum = 256

    jobs: list[Job] = []
    """The jobs. One that is taken out of the list loses its timer, and what reports; what runs of it ends by itself."""
    keep_versions: int = Field(default=5, ge=2)
    """Versions of each model that are kept, the current one among them."""

    def metadata(self, here: Here, job: Job) -> str:
        """What is known of every version of a job before it runs: the members of a JSON object."""
        build = self.cuda_build(here)
        known = {
            "job": job.name,
            "model": job.model,
            "host": here.name,
            "source": shown(self.source or ""),
            "revision": self.revision,
            "cuda": build.cuda if build else None,
        }
        return json.dumps(known)[1:-1]

    def files(self, here: Here) -> list[Row]:
        models = [job.model for job in self.jobs if job.model]
        return [
            Directory(self.root, group="training", mode="750"),
            Directory(MODELS),
            *(Directory(f"{MODELS}/{model}", owner="training", group="training") for model in models),
            Directory(CONFIGURATION),
            *uris.mongodb_authority(here),
            File(f"{CONFIGURATION}/environment", template="program/environment.j2", mode="600", secret=True),
            Directory(files.LIB),
            File(RUN, source="training/run", mode="755"),
            *card_rows(here),
            *(row for job in self.jobs for row in self._units(here, job)),
        ]

    def _units(self, here: Here, job: Job) -> list[Row]:
        reloads = job.model is not None and "inference" in here.roles
        words = {"job": job, "card": has_card(here), "models": MODELS, "run": RUN, "reloads": reloads}
        unit = f"{UNITS}/{job.unit}"
        return [
            File(f"{unit}.service", template="training/job.service.j2", variables=words),
            *([File(f"{unit}.timer", template="training/job.timer.j2", variables=words)] if job.schedule else []),
            *([File(f"{unit}-report.service", template="training/report.service.j2", variables=words)] if job.report else []),
        ]

    def further_units(self) -> list[str]:
        return [f"{job.unit}.timer" for job in self.jobs if job.schedule]

    def services(self, here: Here) -> list[service.Service]:
        """Jobs are left alone, timers run, and what reports goes on where it is."""
        found = []
        for job in self.jobs:
            found.append(service.Service(f"{job.unit}.service", enabled=None, batch=True))
            if job.schedule:
                found.append(service.Service(f"{job.unit}.timer"))
            if job.report:
                found.append(service.Service(f"{job.unit}-report.service", running=None, restart=False))
        return found

    def further_errors(self, here: Here) -> Iterable[str]:
        yield from super().further_errors(here)
        if not self.jobs:
            yield 'training_jobs is not set: it names the jobs, such as [{"name": "forecast", "command": ["python", "-m", "forecast.train"]}]'
        for what in ("name", "model"):
            counted = Counter(value for job in self.jobs if (value := getattr(job, what)))
            yield from (f"training_jobs: two jobs have the {what} {value!r}" for value, times in counted.items() if times > 1)
        for job in self.jobs:
            if job.report and not job.model:
                yield f"training_jobs: {job.name} has report, and no model whose versions it could report"


@role(Settings, "Training")
def training(settings: Settings, here: Here) -> None:
    # install
    install(settings, here)
    accounts.users(name="User", users=[accounts.User("training", home="/var/lib/training", system=True)])

    # configure: what runs stays in its own release and environment
    configured = files.table(name="Configuration", rows=settings.files(here), settings=settings)
    settings.bring()

    # run
    declared = settings.services(here)
    service.only(name="Jobs that are gone", pattern="training-*", units=[item.unit for item in declared])
    service.services(name="Jobs", services=declared, after=[configured])
