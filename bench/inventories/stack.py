"""The whole stack on one host of the bench's own, as inventories/lab.py has it; with its settings by --group-data."""

import json
import os
from pathlib import Path

from bench import hosts

# Through the proxy, where there is one (as in bench/with_groundwork/inventory.py).
_name, _data = hosts.STACK
for _target in json.loads(Path(os.environ["BENCH_TARGETS"]).read_text()) if "BENCH_TARGETS" in os.environ else []:
    _data |= {"ssh_hostname": _target["ssh_hostname"], "ssh_port": _target["ssh_port"], "ssh_known_hosts_file": _target["known_hosts"], "base_ssh_port": 22}

lab = [(_name, _data)]
docker = mongodb = redis = chromadb = app = nginx = lab
