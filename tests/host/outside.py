"""A lab host that has no business with the others: the tests knock from here."""

from lab import lab_host

outside = [lab_host("outside", "10.87.0.250")]
