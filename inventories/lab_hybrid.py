"""Two sites: MongoDB in the cloud, a box at the office that trains and infers, and WireGuard between them.

    python -m lab up inventories/lab_hybrid.py
    pyinfra inventories/lab_hybrid.py deploy.py

The office lies behind NAT: it dials out, and nobody can dial it. The two run different distributions. inventories/onprem.py
is the same with EC2 in the cloud's place.
"""

from lab import lab_host
from lab.settings import OFFICE_PREFIX, PREFIX, SUITE

_link = {"link_userspace": True}  # the lab's kernel has no WireGuard
_data1 = lab_host("data-cloud", f"{PREFIX}.101", memory=1024, link_endpoint=f"{PREFIX}.101", **_link)
_box1 = lab_host(
    "box-office", f"{OFFICE_PREFIX}.101", suite="bookworm" if SUITE == "trixie" else "trixie", memory=4096,
    site="office", gpu_card=False, **_link,  # the lab has no card
)  # fmt: skip

# A group that is no role: what group_data/lab.py says holds for these hosts, too.
lab = [_data1, _box1]

link = [_data1, _box1]
mongodb = [_data1]
gpu = [_box1]
redis = [_box1]
training = [_box1]
inference = [_box1]
