"""The hosts of one measurement, for stock pyinfra."""

import json
import os
from pathlib import Path

_targets = json.loads(Path(os.environ["BENCH_TARGETS"]).read_text())

web = [
    (
        target["name"],
        {
            "ssh_hostname": target["ssh_hostname"],
            "ssh_port": target["ssh_port"],
            "ssh_user": target["user"],
            "ssh_key": target["key"],
            "ssh_known_hosts_file": target["known_hosts"],
            "ssh_strict_host_key_checking": "yes",
        },
    )
    for target in _targets
]
