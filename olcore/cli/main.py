"""The olcore program."""


def main() -> None:
    """Run."""
