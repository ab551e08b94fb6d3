"""The version, alone in a file: the command line prints it without importing anything else."""

__version__ = "0.1.0"
