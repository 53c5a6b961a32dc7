"""Data on EC2, the GPU at the office: EC2's instances by their tags, and the box beside you. docs/hybrid.md.

    pyinfra inventories/onprem.py deploy.py
    pyinfra inventories/onprem.py deploy.py --limit gpu1   # the box alone
"""

from groundwork import ec2

_login = {"ssh_user": "ubuntu", "ssh_strict_host_key_checking": "yes"}
_gpu1 = ("gpu1", {**_login, "ssh_hostname": "192.168.10.20", "site": "office"})
_cloud = ec2.hosts(env="prod", data=_login)
globals().update(_cloud)

# A group that is no role: what group_data/prod.py says holds for the box, too.
prod = [*_cloud["prod"], _gpu1]

# The office dials out by WireGuard, to each instance that has a public address; nothing is opened there.
link = prod
gpu = [_gpu1]
training = [_gpu1]
inference = [_gpu1]
# A cache of its own, beside the cloud's. (An application in a cloud that has none would use this one, over the link.)
redis = [*_cloud.get("redis", []), _gpu1]
