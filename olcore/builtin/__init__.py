"""The defaults of olcore, registered through the same hooks as any plugin."""
