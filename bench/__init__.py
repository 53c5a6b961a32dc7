"""How fast: the same states by Groundwork and by what else there is, side by side. `make bench`; bench/README.md."""
