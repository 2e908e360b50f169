"""Runs the program as ``python -m olcore``."""

from olcore.cli.main import main

if __name__ == "__main__":
    main()
