"""Lab hosts that have no business with the others, one in each of the lab's networks: the tests knock from there."""

from lab import lab_host
from lab.settings import OFFICE_PREFIX, PREFIX

outside = [lab_host("outside", f"{PREFIX}.250"), lab_host("outside-office", f"{OFFICE_PREFIX}.250")]
