"""Local hosts to try and test against: real systemd, sshd and network, no cloud account.

An inventory that uses them is an ordinary pyinfra inventory (see docs/lab.md):

    from lab import lab_host

    _demo = lab_host("demo", "10.87.0.11", memory=2048, cores=2)
    nginx = [_demo]
    mongodb = [_demo]

    $ python -m lab up inventories/lab.py
    $ pyinfra inventories/lab.py deploy.py

The underscore matters: pyinfra reads every public tuple of an inventory as a group.
"""

from . import settings

#: The stand-in for vendors' apt repositories, and the public key it is signed with.
REPOSITORY = settings.REPOSITORY
REPOSITORY_KEY = str(settings.REPOSITORY_KEY)


def lab_host(name, address, suite=settings.SUITE, memory=2048, cores=2, user_data="", ssh_socket=False, **data):
    """A pyinfra host of the lab: `(name, data)`. Makes nothing; `python -m lab up` does.

    Args:
        user_data: more for cloud-init to do at the first boot, "#cloud-config …"; `lab up` does not wait for it.
        ssh_socket: systemd listens for sshd, as on Ubuntu 24.04.
    """
    options = {"user_data": user_data, "ssh_socket": ssh_socket}
    return name, {
        "ssh_hostname": address,
        "ssh_user": "ubuntu",
        "ssh_key": str(settings.SSH_KEY),
        "ssh_known_hosts_file": str(settings.KNOWN_HOSTS),
        "ssh_strict_host_key_checking": "yes",
        "private_address": address,
        # The host sees the controller's memory and cores; these are what it stands for.
        "hardware_memory": memory,
        "hardware_cores": cores,
        "connector": settings.CONNECTOR,
        "lab_suite": suite,
        "lab_options": {option: value for option, value in options.items() if value},
        **data,
    }


def available() -> str | None:
    """Why no lab can run on this machine, or None if one can."""
    from .controller import available

    return available()
