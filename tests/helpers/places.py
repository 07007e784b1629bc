"""The kinds of storage that a store is shared with."""

PLACES = ["local", "s3", "memory"]
"""Parameters of the fixture `place`; `memory` stands for any fsspec URL."""
