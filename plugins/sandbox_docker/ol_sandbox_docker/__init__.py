"""Docker containers as sandboxes of olcore."""
