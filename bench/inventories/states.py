"""The hosts of the 200 states: python -m lab up bench/inventories/states.py bench1 …"""

from bench.hosts import FRESH, SHARED

base = [*SHARED, *FRESH]
