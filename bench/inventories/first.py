"""The stack of inventories/lab.py on a host of the benchmark's own: what a first run is measured on.

    python -m lab up bench/inventories/first.py
    pyinfra -y bench/inventories/first.py deploy.py
"""

from lab import lab_host

_first = lab_host("first", "10.87.0.127", memory=2048, cores=2)

docker = [_first]
mongodb = [_first]
redis = [_first]
chromadb = [_first]
app = [_first]
nginx = [_first]
