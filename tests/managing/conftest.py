"""Copies of the kept store, on this machine and on S3."""

import shutil

import pytest

from fusestore.store.layout import Store
from fusestore.workflows.sharing import CopySettings, copy_artifacts
from tests.helpers.command import Command
from tests.helpers.kept_copy import first_store, store

__all__ = ["first_store", "store"]


@pytest.fixture
def command(capsys, monkeypatch):
    """`fusestore`, in this process."""
    return Command(capsys, monkeypatch)


@pytest.fixture(scope="session")
def lineage_of_a_model(first_store, tmp_path_factory):
    """A store of ten artifacts: a model and all it was made from, and a cache besides."""
    root = Store.open(tmp_path_factory.mktemp("lineage") / "store")
    names = ["model/fused", "cache/nucleus"]
    copy_artifacts(Store.open(first_store), root, names, CopySettings(inputs=True))
    return root


@pytest.fixture(params=["local", "s3"])
def some(request, lineage_of_a_model, tmp_path):
    """The same store on each kind of storage; a test may change it.

    What a test with `S3_IS_SLOW` (tests/helpers/storages.py) does on S3 others do there too.
    """
    if request.param == "local":
        return Store.open(shutil.copytree(lineage_of_a_model.location.path, tmp_path / "some"))
    target = Store.open(f"{request.getfixturevalue('s3_url')}/some")
    copy_artifacts(lineage_of_a_model, target, None)
    return target
