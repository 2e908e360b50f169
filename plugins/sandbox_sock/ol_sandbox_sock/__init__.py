"""SOCK, the sandbox of olcore that starts in milliseconds: forked, never executed."""
