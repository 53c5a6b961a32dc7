"""The bare host that bench/floor.sh is measured on."""

from lab import lab_host

floor = [lab_host("floor", "10.87.0.128", memory=2048, cores=2)]
