"""The version, as a constant: asking the package metadata costs more than a boot."""

__version__ = "0.1.0"
