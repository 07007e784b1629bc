"""A small complete store, and places to share it with."""

import shutil
import uuid
from pathlib import Path

import pytest

from fusestore.storage.store import Store
from fusestore.version import FORMAT_VERSION

PLACES = ["local", "s3", "memory"]


@pytest.fixture
def first_store():
    """The kept store of this version; not to be changed."""
    return Path(__file__).parent.parent / f"kept_store/format-{FORMAT_VERSION}/store"


@pytest.fixture
def store(first_store, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(first_store, tmp_path / "store"))


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
