"""The bench's own lab hosts."""

from lab import lab_host

SHARED = [lab_host(f"bench{number}", f"10.87.0.{199 + number}", memory=1024, cores=1) for number in range(1, 51)]
"""Hosts with the 200 states, on which every tool's run shall change nothing."""

FRESH = [lab_host(f"benchfresh{number}", f"10.87.0.{120 + number}", memory=1024, cores=1) for number in range(1, 5)]
"""A host for each tool, which brings the 200 states to it by itself."""

STACK = lab_host("benchstack", "10.87.0.120", memory=2048, cores=2)
"""The whole stack, as in inventories/lab.py."""
