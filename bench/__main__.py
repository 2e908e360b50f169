"""Runs benchmarks by name: ``python -m bench warm cold``."""

from __future__ import annotations

import importlib
import sys

BENCHES = {
    "warm": "warm throughput over the same function in-process",
    "cold": "cold start over a bare fork",
    "layers": "what each layer of SOCK adds to a cold start",
    "imports": "cold starts of handlers that import packages, by the import cache",
    "docker": "SOCK against Docker, with and without the warm pool",
}


def main() -> None:
    """Run what the command line names, one after the other; what follows ``--`` goes to the last."""
    names, _, rest = " ".join(sys.argv[1:]).partition("--")
    unknown = [name for name in names.split() if name not in BENCHES]
    if unknown or not names.split():
        known = "\n".join(f"  {name:8} {what}" for name, what in BENCHES.items())
        raise SystemExit(f"usage: python -m bench NAME ... [-- ARGUMENTS]\n{known}")
    for number, name in enumerate(names.split(), 1):
        print(f"== {name}: {BENCHES[name]}")
        module = importlib.import_module(f"bench.{name}")
        module.main(rest.split() if number == len(names.split()) else [])


if __name__ == "__main__":
    main()
