"""Jobs for people, from their own machine: `fab --list`, and docs/people.md.

Each but check takes --inventory inventories/NAME.py; by default that of GROUNDWORK_INVENTORY, or of the only secrets/*.age.
"""

import sys
from functools import wraps
from pathlib import Path

from fabric import task
from invoke.exceptions import Exit
from invoke.parser.parser import ParseMachine
from pyinfra.api.exceptions import PyinfraError

from groundwork.topology import SettingsError


def _complete(machine, complete=ParseMachine.complete_context):
    """An argument that is left out is empty: to invoke an error, while jobs do without it or say what it may be."""
    for argument in machine.context.missing_positional_args if machine.context else []:
        argument.value = ""
    complete(machine)


ParseMachine.complete_context = _complete


def job(function):
    """A task whose errors are one sentence and status 1."""

    @task
    @wraps(function)
    def run(context, *arguments, **options):
        try:
            function(context, *arguments, **options)
        except KeyboardInterrupt:
            raise Exit("error: interrupted", code=130) from None
        except SettingsError as error:
            raise Exit(f"error: the inventory's settings are refused: {error.errors[0]}", code=1) from None
        except OSError as error:
            raise Exit(f"error: {error.filename or 'input or output'}: {error.strerror}", code=1) from None
        except PyinfraError as error:
            raise Exit(f"error: {error}", code=1) from None

    return run


@job
def tunnel(context, role, port=None, host=None, inventory=None):
    """Lead a port of this machine to mongodb, redis, chromadb, …: stays until Ctrl-C."""
    from groundwork import people
    from groundwork.tunnel import Tunnel, place

    here = place(people.load(people.inventory(inventory)), role, host)
    Tunnel(here, role, people.number("--port", port, 65535), tell=people.tell).run()


@job
def env(context, file=".env", role=None, tunnel=False, port=None, force=False, inventory=None):
    """Write MONGO_URI and the like into .env, for you alone: for an application on this machine."""
    from groundwork import people

    path = people.inventory(inventory)
    port = people.number("--port", port, 65535)
    whose, names = people.write_env(Path(file), path, people.load(path), people.store(path), role, tunnel, port, force)
    people.tell(f"{file}, of {whose}: {', '.join(names)} (mode 0600; no value is shown)")


@job
def check(context, file=None):
    """Try MONGO_URI (of the environment, or of .env) and say what is wrong: name, route, firewall, TLS or password."""
    from groundwork import mongodb_check

    if not mongodb_check.run(mongodb_check.uri_of(file)):
        sys.exit(1)


@job
def status(context, inventory=None):
    """Whether the services of every host run, and what else has failed there."""
    from groundwork import people, services

    if not services.status(people.load(people.inventory(inventory)), people.tell):
        sys.exit(1)


@job
def logs(context, service, host=None, lines="50", inventory=None):
    """The last lines of a service's journal: of a role (mongodb), or of a unit with --host (training-forecast)."""
    from groundwork import people, services

    here = services.place(people.load(people.inventory(inventory)), service, host)
    print(services.logs(here, service, people.number("--lines", lines, 100000)), end="")


@job
def train(context, name, host=None, inventory=None):
    """Start a job of training_jobs, and tell how it comes along; Ctrl-C leaves it alone."""
    from groundwork import people, services

    here = people.host_of(people.load(people.inventory(inventory)), "training", host)
    services.start(here, name)
    if not services.follow(here, name, people.tell):
        sys.exit(1)


@job
def progress(context, name, host=None, inventory=None):
    """How the training jobs are, or how one comes along until it has ended."""
    from groundwork import people, services

    here = people.host_of(people.load(people.inventory(inventory)), "training", host)
    if not name:
        services.progress(here, people.tell)
    elif not services.follow(here, name, people.tell):
        sys.exit(1)
