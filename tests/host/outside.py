"""A lab host that has no business with the others: the tests knock from here."""

from lab import lab_host
from lab.settings import PREFIX

outside = [lab_host("outside", f"{PREFIX}.250")]
