"""The olcore program, one module for each group of commands."""
