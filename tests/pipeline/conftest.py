"""The tiny fusion."""

from tests.helpers.finished_job import _own_home, first_store, job, store

__all__ = ["_own_home", "first_store", "job", "store"]
