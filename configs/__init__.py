"""Runs as plain data: one `get_config` a file, the command and the measured result in its docstring."""
