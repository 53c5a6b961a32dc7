"""pyinfra's own settings, read before the inventory."""

import sys

from pyinfra import config
from pyinfra.api.state import MAX_PARALLEL

# pyinfra's command line has Python keep no compiled module, and each run would compile all of ours again; who set
# PYTHONDONTWRITEBYTECODE meant it. (This file, the inventory and deploy.py are read by pyinfra itself, and not kept in
# any case.)
sys.dont_write_bytecode = bool(sys.flags.dont_write_bytecode)

from groundwork import command_line, connections, connector, pyinfra_costs, stages  # noqa: E402

config.REQUIRE_PYINFRA_VERSION = "==3.10.0"
config.SUDO = True
# One host that fails stops the run: --fail-percent N is the way to go on without it.
config.FAIL_PERCENT = 0
# All hosts at once, as far as files can be open: by default 20 a core, and each operation of the others would wait for
# a place, and so for a slow host. (--parallel N says otherwise.)
config.PARALLEL = MAX_PARALLEL

pyinfra_costs.set_up()
# First: pyinfra remembers the ssh_config that it has read.
connections.set_up()
connector.set_up()
stages.set_up()
command_line.check(sys.argv[1:])
