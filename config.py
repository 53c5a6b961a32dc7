"""pyinfra's own settings, read before the inventory."""

import sys

from pyinfra import config

from groundwork import command_line, connections, connector

config.REQUIRE_PYINFRA_VERSION = "==3.10.0"
config.SUDO = True
# One host that fails stops the run: --fail-percent N is the way to go on without it.
config.FAIL_PERCENT = 0

# First: pyinfra remembers the ssh_config that it has read.
connections.set_up()
connector.set_up()
command_line.check(sys.argv[1:])
