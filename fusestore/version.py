"""The library's version and the version of the store format it writes."""

__version__ = "0.1.0"

FORMAT_VERSION = 1
"""Raised whenever a store written by this version could not be read by the one before."""
