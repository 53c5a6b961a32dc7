"""Four lab hosts: an edge, two applications, and their data.

    python -m lab up inventories/lab_cluster.py
    pyinfra inventories/lab_cluster.py deploy.py
"""

from lab import lab_host

_edge1 = lab_host("edge1", "10.87.0.21", memory=1024)
_app1 = lab_host("app1", "10.87.0.22")
_app2 = lab_host("app2", "10.87.0.23")
_data1 = lab_host("data1", "10.87.0.24", memory=4096)

# A group that is no role: what group_data/lab.py says holds for these hosts, too.
lab = [_edge1, _app1, _app2, _data1]

nginx = [_edge1]
app = [_app1, _app2]
docker = [_app1]
mongodb = [_data1]
redis = [_data1]
chromadb = [_data1]
