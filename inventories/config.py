"""Read where pyinfra is run from this directory, in which it would take lab.py for the package lab."""

from groundwork.errors import Refusal

raise Refusal("run pyinfra in the repository's root: cd .. (and then pyinfra inventories/NAME.py deploy.py)")
