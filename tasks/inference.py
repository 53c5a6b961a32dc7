"""Inference: an ASGI application that answers from a model, on the host that has the model."""

from __future__ import annotations

import difflib
from typing import Iterable

from pydantic import Field

from groundwork import uris
from groundwork.program import MODELS, ModelName, ServerSettings, card_rows, has_card
from groundwork.roles import role
from groundwork.rows import Directory, File, Row
from groundwork.settings import Port, bracketed
from groundwork.topology import Flow, Here
from operations import accounts, files, service, wait
from tasks.packages import install

CONFIGURATION = "/etc/inference"
UNIT = "inference.service"


class Settings(ServerSettings):
    """Inference."""

    role = "inference"
    mark = "/etc/inference/gunicorn.conf.py"
    units = (UNIT,)
    memory_weight = 2
    memory_minimum = 128

    models: list[ModelName] = []
    """Models that it answers from: MODEL_DIRECTORY is the current version of the first, MODELS the directory of
    all of them. It starts without them."""
    workers: int = Field(default=1, ge=1)
    """Worker processes; each has the model in memory by itself."""
    port: Port = 8100
    """TCP port, on loopback, and on the addresses by which other hosts have a flow."""

    def listens_on(self, here: Here) -> list[str]:
        """Addresses: besides loopback those by which another host has a flow."""
        return ["127.0.0.1", *here.binds(self.port)]

    def binds(self, here: Here) -> list[str]:
        """The addresses as gunicorn takes them."""
        return [f"{bracketed(address)}:{self.port}" for address in self.listens_on(here)]

    def neighbours(self, here: Here, secret: uris.Secrets) -> dict[str, str]:
        current = {"MODEL_DIRECTORY": f"{MODELS}/{self.models[0]}/current"} if self.models else {}
        return super().neighbours(here, secret) | {"MODELS": MODELS} | current

    def files(self, here: Here) -> list[Row]:
        free = files.ports_free(UNIT, {self.port: "inference_port"}, self.listens_on(here))
        return [
            Directory(self.root, group="inference", mode="750"),
            Directory(MODELS),
            Directory(CONFIGURATION),
            File(f"{CONFIGURATION}/environment", template="program/environment.j2", mode="600", secret=True),
            File(
                f"{CONFIGURATION}/gunicorn.conf.py",
                template="inference/gunicorn.conf.py.j2",
                check=f"{free} || exit 1\n{self.gunicorn_check()}",
            ),
            *card_rows(here),
            File(
                f"/etc/systemd/system/{UNIT}",
                template="inference/inference.service.j2",
                variables={"card": has_card(here)},
                keep=True,
            ),
        ]

    def flows(self) -> list[Flow]:
        return [Flow("app", self.role, self.port, nearest=True)]

    def further_errors(self, here: Here) -> Iterable[str]:
        yield from super().further_errors(here)
        made = [job.model for job in here.settings_of("training").jobs if job.model] if "training" in here.roles else []
        for model in set(self.models) - set(made):  # another may have been brought by hand
            for close in difflib.get_close_matches(model, made, n=1, cutoff=0.75):
                yield f"inference_models: {model!r} is made by no job of training_jobs; did you mean {close!r}?"
        if any(opening.port == self.port and opening.everybody for opening in here.openings()):
            yield (
                'flows: "internet" to inference is refused, because it asks nobody for a password: '
                "name the networks of its clients"
            )

    def services(self, here: Here) -> list[service.Service]:
        reads = (
            f"{self.root}/current",
            f"{self.root}/current/.venv",
            f"{CONFIGURATION}/environment",
            f"{CONFIGURATION}/gunicorn.conf.py",
        )
        return [service.Service(UNIT, reads=reads, ports={self.port: "inference_port"})]


@role(Settings, "Inference")
def inference(settings: Settings, here: Here) -> None:
    # install
    install(settings, here)
    accounts.users(name="User", users=[accounts.User("inference", home="/var/lib/inference", system=True)])

    # configure
    configured = files.table(name="Configuration", rows=settings.files(here), settings=settings)
    brought = settings.bring()

    # run
    service.services(
        name="Service",
        services=settings.services(here),
        after=[configured, *brought],
    )
    if settings.health_path:
        wait.http(
            name="Health",
            url=f"http://127.0.0.1:{settings.port}{settings.health_path}",
            unit=UNIT,
            seconds=settings.start_seconds,
        )
