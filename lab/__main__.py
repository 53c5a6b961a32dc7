"""python -m lab up|down|reset|ssh|list: local hosts to try and test against (docs/lab.md)."""

import argparse
import os
import sys
from pathlib import Path

from . import controller, hosts, inventory, network, repository, settings, web
from .settings import CACHE, LabError
from .shell import say, warn


def up(inventory_file: str, names: list[str], fresh: bool = False) -> None:
    """Boot an inventory's hosts, or those named; made anew, if asked so."""
    wanted = inventory.read(inventory_file)
    if unknown := set(names) - {want.name for want in wanted}:
        there = ", ".join(want.name for want in wanted)
        raise LabError(f"{inventory_file} has no host {', '.join(sorted(unknown))}; it has {there}.")
    wanted = [want for want in wanted if not names or want.name in names]
    with hosts.lock():
        there = hosts.known()
        if fresh:
            hosts.down([there.pop(want.name) for want in wanted if want.name in there])
        if network.is_up() and web.running() and all(hosts.is_up(there.get(want.name)) for want in wanted):
            hosts.up(wanted)  # refuses other parameters
            say(f"{', '.join(want.name for want in wanted)}: running")
            return
        controller.install_programs()
        hosts.clean()
        before = controller.remember_sysctls()
        _prepare()
        _stand_in()
        hosts.up(wanted)
        controller.compare_sysctls(before)


def down(inventory_file: str | None, cache: bool) -> None:
    """Stop an inventory's hosts, or all; with the last one goes everything outside the cache."""
    names = _names(inventory_file) if inventory_file else None
    with hosts.lock():
        hosts.clean()
        going = [host for host in hosts.known().values() if names is None or host.name in names]
        hosts.down(going)
        say(f"down: {', '.join(host.name for host in going) or 'nothing was up'}")
        if not hosts.known():
            controller.compare_sysctls(controller.recall_sysctls())
            controller.forget_sysctls()
            web.down()
            network.down()
            hosts.remove_traces()
        if cache and hosts.known():
            raise LabError(f"The cache stays: {', '.join(hosts.known())} still live in it.")
        if cache:
            hosts.remove_cache()


def reset(name: str) -> None:
    """A fresh host with the same host keys, as its inventory declares it now."""
    host = _host(name)
    if Path(host.inventory).exists():
        want = next((want for want in inventory.read(host.inventory) if want.name == name), None)
    else:  # the checkout that it was made from is gone
        want = inventory.Wanted(host.name, host.address, host.suite, host.inventory, host.options)
    if not want:
        raise LabError(f"{host.inventory} has no host {name} any more; python -m lab down --all removes it.")
    with hosts.lock():
        hosts.clean()
        _prepare()
        hosts.reset(host, want)


def ssh(name: str, command: list[str]) -> None:
    """Log into a host, or run a command on it."""
    line = hosts.ssh_command(_host(name), *command)
    os.execvp(line[0], line)


def show() -> None:
    """Every host, and how it is."""
    rows = [("NAME", "SUITE", "ADDRESS", "STATE", "INVENTORY")]
    for host in hosts.known().values():
        rows.append((host.name, host.suite, host.address, host.state, os.path.relpath(host.inventory)))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def main(arguments: list[str]) -> int:
    """Parse, do, and turn what can go wrong into one sentence."""
    options = _parser().parse_args(arguments)
    try:
        controller.require()
        match options.command:
            case "up":
                up(options.inventory, options.hosts, options.fresh)
            case "down":
                down(_what(options), options.cache)
            case "reset":
                reset(options.host)
            case "ssh":
                ssh(options.host, options.words)
            case "list":
                show()
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nlab: interrupted; run the same command again to go on.", file=sys.stderr)
        return 130
    return 0


def _what(options: argparse.Namespace) -> str | None:
    """The inventory to take down, or None for all: a slip of the fingers would take down somebody else's."""
    if not (options.inventory or options.all or options.cache):
        raise LabError("down takes an inventory, or --all for every host of the lab (python -m lab list shows them).")
    return options.inventory


def _prepare() -> None:
    """What hosts need around them: the network and the web server."""
    new = network.up()
    for host in hosts.known().values():
        if settings.bridge(host.address) in new:
            hosts.stop(host)  # cut off from a bridge that is gone; boots again with its files
    web.up()


def _stand_in() -> None:
    """Build the stand-in repository; hosts that need nothing from it do without."""
    try:
        repository.ensure()
    except LabError as error:
        warn(f"the stand-in package repository could not be built, so hosts can't install from it: {error}")


def _names(inventory_file: str) -> set[str]:
    """Hosts of an inventory; of one whose file is gone, those that were made from it."""
    path = str(Path(inventory_file).resolve())
    made = {host.name for host in hosts.known().values() if host.inventory == path}
    if made and not Path(path).exists():
        return made
    return {want.name for want in inventory.read(inventory_file)}


def _host(name: str) -> hosts.Host:
    there = hosts.known()
    if name not in there:
        raise LabError(f"There is no host {name}; {'there are ' + ', '.join(there) if there else 'none is up'}.")
    return there[name]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lab", description="Local hosts to try and test against.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="up|down|reset|ssh|list")
    command = commands.add_parser("up", help="boot an inventory's hosts")
    command.add_argument("inventory", metavar="INVENTORY")
    command.add_argument("hosts", metavar="HOST", nargs="*", help="only these")
    command.add_argument("--fresh", action="store_true", help="made anew, whatever is there")
    command = commands.add_parser("down", help="stop hosts and remove them")
    command.add_argument("inventory", metavar="INVENTORY", nargs="?", help="only this inventory's")
    command.add_argument("--all", action="store_true", help="every inventory's")
    command.add_argument("--cache", action="store_true", help=f"every inventory's, and remove {CACHE} too")
    command = commands.add_parser("reset", help="a fresh host in the place of one")
    command.add_argument("host", metavar="HOST")
    command = commands.add_parser("ssh", help="log into a host, or run a command on it")
    command.add_argument("host", metavar="HOST")
    command.add_argument("words", metavar="CMD", nargs=argparse.REMAINDER)
    commands.add_parser("list", help="every host, and how it is")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
