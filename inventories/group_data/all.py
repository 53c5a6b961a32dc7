"""Settings of every inventory here. docs/settings.md lists what can be set."""

from groundwork import command_line

# pyinfra reads this file before it connects, wherever it is started.
command_line.refuse_elsewhere()
