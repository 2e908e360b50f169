"""The local handler store of olcore: a folder for each handler."""
