"""Production: EC2's instances by their tags. docs/ec2.md; hosts that you write down yourself: inventories/static.py.

    pyinfra inventories/prod.py deploy.py --dry --diff     # what would change, and nothing is
    pyinfra inventories/prod.py deploy.py                  # shows it, asks, then does it
    pyinfra inventories/prod.py deploy.py --limit app1     # one host
    pyinfra inventories/prod.py tasks.nginx.nginx          # one role
    pytest tests/host --inventory inventories/prod.py      # is it so?
"""

from groundwork import ec2

globals().update(ec2.hosts(env="prod", data={"ssh_user": "ubuntu", "ssh_strict_host_key_checking": "yes"}))
