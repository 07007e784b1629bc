"""A small complete store, and places to share it with."""

import uuid

import pytest

from fusestore.fuse.shared import unpack_fused
from fusestore.storage.location import Location
from fusestore.store.layout import Store
from tests.helpers.kept_copy import first_store, store
from tests.helpers.tiny_job import hashes

__all__ = ["first_store", "place", "store", "unpacked"]

SHARED = "fused/mixed"
"""What the kept store has in the shared form, so that it changes on its way to a folder."""


@pytest.fixture(scope="session")
def unpacked(first_store, tmp_path_factory):
    """Hashes of the kept store's files as they arrive in a folder: the shared form unpacked."""
    local = Location.parse(tmp_path_factory.mktemp("unpacked") / "mixed")
    unpack_fused(Location.parse(first_store / SHARED), local)
    kept = hashes(Location.parse(first_store))
    others = {path: digest for path, digest in kept.items() if not path.startswith(SHARED)}
    return others | {f"{SHARED}/{path}": digest for path, digest in hashes(local).items()}


@pytest.fixture
def place(request, tmp_path):
    """An empty store of each kind of storage; the third stands for any fsspec URL."""
    kind = request.param
    if kind == "local":
        yield Store.open(tmp_path / "place")
    elif kind == "s3":
        yield Store.open(f"{request.getfixturevalue('s3_url')}/some/place")
    else:
        target = Store.open(f"memory://{uuid.uuid4().hex}/place")
        yield target
        target.location.delete()
