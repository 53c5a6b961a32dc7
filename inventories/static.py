"""Hosts written down, where no cloud's tags say which there are. Copy it to inventories/prod.py, put yours in.

    cp inventories/static.py inventories/prod.py
    pyinfra inventories/prod.py deploy.py --dry --diff     # what would change, and nothing is
    pyinfra inventories/prod.py deploy.py                  # shows it, asks, then does it
    pyinfra inventories/prod.py deploy.py --limit app1     # one host
    pyinfra inventories/prod.py tasks.nginx.nginx          # one role
    pytest tests/host --inventory inventories/prod.py      # is it so?

A host is a pair: a name, and what is true of this host alone. Names that start with an underscore
are not groups.
"""

# How we reach it (ssh_*: pyinfra's own), and how the other hosts do (private_address).
# ~/.ssh/known_hosts must know it: connect once by hand, and compare the fingerprint.
_edge1 = (
    "edge1",
    {
        "ssh_hostname": "203.0.113.10",
        "ssh_user": "ubuntu",
        "ssh_strict_host_key_checking": "yes",
        "private_address": "10.0.1.10",
    },
)
_data1 = (
    "data1",
    {
        "ssh_hostname": "203.0.113.20",
        "ssh_user": "ubuntu",
        "ssh_strict_host_key_checking": "yes",
        "private_address": "10.0.1.20",
    },
)

# A group is a role: a host gets the roles whose groups it is in. Every host gets `base`.
# Who may reach whom follows from this: app reaches mongodb, redis and chromadb; everybody reaches
# nginx, and sshd where base_ssh_sources does not say who; nobody reaches anything else.
nginx = [_edge1]
app = [_edge1]

mongodb = [_data1]
redis = [_data1]
chromadb = [_data1]

# A group that is no role: what group_data/prod.py says holds for these hosts.
prod = [_edge1, _data1]
