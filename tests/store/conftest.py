"""A copy of the kept store."""

from tests.sharing.conftest import first_store, store

__all__ = ["first_store", "store"]
