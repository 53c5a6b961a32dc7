"""The hosts of one measurement, by the addresses at which the bench's proxy stands for them."""

import json
import os
from pathlib import Path

from lab import lab_host

_targets = json.loads(Path(os.environ["BENCH_TARGETS"]).read_text())

# `base` is there so that the inventory is one of ours: its deploy is not run, and so nothing is taken over.
base = [
    lab_host(
        target["name"], target["address"], memory=1024, cores=1, take_over=["base"], base_ssh_port=22,
        ssh_hostname=target["ssh_hostname"], ssh_port=target["ssh_port"], ssh_known_hosts_file=target["known_hosts"],
    )
    for target in _targets
]  # fmt: skip
