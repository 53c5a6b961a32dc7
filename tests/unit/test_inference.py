"""Inference: where it listens, who finds it, and what is refused."""

from __future__ import annotations

import configparser

import pytest

from groundwork.preflight import render_errors
from groundwork.secrets import Secret
from groundwork.templates import render
from groundwork.topology import SettingsError, external
from tasks.app import Settings as AppSettings
from tasks.inference import Settings
from tests.unit.conftest import SYSTEMS, make_topology

DATA = {"inference_source": "examples/forecast", "inference_module": "forecast.api:app", "inference_models": ["load"]}
APP = {"app_source": "examples/app"}


def on(groups=("inference",), **data):
    """Settings and host of an inference backend."""
    here = make_topology({"one": (list(groups), {**DATA, **data})}).hosts["one"]
    return here.settings(Settings), here


def rendered(settings, here, name: str) -> str:
    row = next(row for row in settings.files(here) if row.path.endswith(name))
    return render(row, settings, here, lambda name: "x").decode()


def test_alone_it_listens_on_loopback():
    settings, here = on(["inference", "app"], **APP)
    assert settings.binds(here) == ["127.0.0.1:8100"] and 8100 not in {opening.port for opening in here.openings()}
    assert here.settings(AppSettings).variables(here, lambda name: "x")["INFERENCE_URL"] == "http://127.0.0.1:8100"


def test_an_application_elsewhere_reaches_it():
    topology = make_topology({"web": (["app"], APP), "box": (["inference"], {**DATA, "inference_port": 8200})})
    box, web = topology.hosts["box"], topology.hosts["web"]
    assert box.settings(Settings).binds(box) == ["127.0.0.1:8200", "10.0.0.2:8200"]
    assert [(opening.port, opening.networks(4)) for opening in box.openings() if opening.role == "inference"] == [(8200, ["10.0.0.1"])]
    assert web.settings(AppSettings).variables(web, lambda name: "x")["INFERENCE_URL"] == "http://10.0.0.2:8200"


def test_one_that_is_not_ours_is_found_too():
    here = make_topology({"web": (["app"], {**APP, "externals": [external("inference", host="gpu.example.org", port=443, tls=True)]})}).hosts["web"]
    assert here.settings(AppSettings).variables(here, lambda name: "x")["INFERENCE_URL"] == "https://gpu.example.org:443"


def test_without_inference_there_is_no_variable():
    here = make_topology({"web": (["app"], APP)}).hosts["web"]
    assert "INFERENCE_URL" not in here.settings(AppSettings).variables(here, lambda name: "x")


def test_its_variables():
    settings, here = on(["inference", "redis", "mongodb"], inference_environment={"TOKEN": Secret("inference/token")})
    found = settings.variables(here, lambda name: name)
    assert (found["MODEL_DIRECTORY"], found["MODELS"]) == ("/srv/models/load/current", "/srv/models")
    assert found["REDIS_HOST"] == "127.0.0.1" and found["TOKEN"] == "inference/token"
    assert "MONGO_URI" not in found  # it answers from the model
    assert settings.secrets(here) == [Secret("redis/app"), Secret("inference/token")]


@pytest.mark.parametrize("codename", [codename for _, codename in SYSTEMS])
def test_everything_renders(make_here, codename):
    here = make_here(["inference"], codename=codename, **DATA)
    settings = here.settings(Settings)
    assert list(render_errors(here, settings)) == [] and list(settings.errors(here)) == []


def test_gunicorns_configuration():
    settings, here = on(inference_workers=2, inference_timeout_seconds=120)
    configuration: dict = {}
    exec(rendered(settings, here, "gunicorn.conf.py"), configuration)
    assert (configuration["workers"], configuration["timeout"]) == (2, 120)
    assert configuration["bind"] == ["127.0.0.1:8100"] and configuration["preload_app"] is False
    assert configuration["worker_class"] == "uvicorn_worker.UvicornWorker"


def test_the_unit():
    settings, here = on()
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str
    unit.read_string(rendered(settings, here, "inference.service"))
    service = unit["Service"]
    assert service["ExecStart"].split()[0] == "/srv/inference/current/.venv/bin/gunicorn"
    assert (service["User"], service["PrivateDevices"], service["ProtectSystem"]) == ("inference", "yes", "strict")
    assert "ReadWritePaths" not in service  # models are only read
    assert service["MemoryMax"] == f"{here.memory_share('inference')}M"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"inference_source": None}, "inference_source is not set"),
        ({"inference_source": "/nowhere"}, "not a directory"),
        ({"inference_requirements": "requirements.in"}, "requirements.in is no lock"),
        ({"flows": [{"source": "internet", "role": "inference", "port": 8100}]}, '"internet" to inference is refused'),
    ],
)
def test_what_is_refused_with_a_sentence(data, said):
    settings, here = on(**data)
    assert said in "\n".join(settings.errors(here))


@pytest.mark.parametrize("source", ["0.0.0.0/0", "::/0"])
def test_a_network_that_is_everybody_is_refused_as_the_internet_is(source):
    settings, here = on(flows=[{"source": source, "role": "inference", "port": 8100}])
    with pytest.raises(SettingsError, match="is everybody"):
        list(settings.errors(here))


@pytest.mark.parametrize(("model", "said"), [("laod", "did you mean 'load'?"), ("load", ""), ("brought-by-hand", "")])
def test_a_model_that_is_nearly_one_that_is_made_is_a_slip(model, said):
    job = {"name": "forecast", "command": ["python"], "model": "load"}
    settings, here = on(["inference", "training"], inference_models=[model], training_jobs=[job])
    found = "".join(settings.errors(here))
    assert said in found and bool(said) == bool(found)


@pytest.mark.parametrize("data", [{"inference_workers": 0}, {"inference_models": ["Load"]}, {"inference_port": 0}, {"inference_module": "api"}])
def test_values_that_are_refused(data):
    with pytest.raises(SettingsError, match=next(iter(data))):
        on(**data)
