"""One lab host with everything on it: what `make demo` deploys.

    python -m lab up inventories/lab.py
    pyinfra inventories/lab.py deploy.py
"""

from lab import lab_host

_demo = lab_host("demo", "10.87.0.11", memory=2048, cores=2)

docker = [_demo]
mongodb = [_demo]
redis = [_demo]
chromadb = [_demo]
app = [_demo]
nginx = [_demo]
