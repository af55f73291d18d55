"""The programs: `python -m launch.<name> --help`."""
