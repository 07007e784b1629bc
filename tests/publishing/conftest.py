"""A Hub that can be written to, and stores to publish from."""

import huggingface_hub
import pytest

from fusestore.store.layout import Store
from fusestore.workflows.publishing import run
from fusestore.workflows.sharing import CopySettings, copy_artifacts
from tests.helpers.command import Command
from tests.helpers.kept_copy import first_store, store
from tests.helpers.writable_hub import WritableHub

__all__ = ["first_store", "store"]


@pytest.fixture
def command(capsys, monkeypatch):
    """`fusestore`, in this process."""
    return Command(capsys, monkeypatch)


@pytest.fixture
def hub(monkeypatch):
    """A Hub, which this process may ask, by the older protocol for large files."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    # Xet's storage is another server with a protocol of its own.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(run, "FIRST_WAIT_S", 0.01)
    with WritableHub() as server:
        yield server


@pytest.fixture(scope="session")
def lineage(first_store, tmp_path_factory):
    """A store of ten artifacts: a model and all it was made from, and a cache besides."""
    root = Store.open(tmp_path_factory.mktemp("lineage") / "store")
    names = ["model/fused", "cache/nucleus"]
    copy_artifacts(Store.open(first_store), root, names, CopySettings(inputs=True))
    return root
