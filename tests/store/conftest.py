"""A copy of the kept store."""

from tests.helpers.kept_copy import first_store, store

__all__ = ["first_store", "store"]
