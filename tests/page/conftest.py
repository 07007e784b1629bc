"""The tiny job's finished store, and the command line."""

import pytest

from fusestore.store.layout import Store
from fusestore.workflows.store_report import write_report
from tests.helpers.command import Command
from tests.helpers.finished_job import _own_home, first_store, job, store
from tests.helpers.made_once import made_once

__all__ = ["_own_home", "first_store", "job", "store"]


@pytest.fixture
def command(capsys, monkeypatch):
    return Command(capsys, monkeypatch)


@pytest.fixture(scope="session")
def page(tmp_path_factory, first_store):
    """The page of the finished store."""

    def make(folder):
        folder.mkdir()
        write_report(Store.open(first_store), str(folder / "report.html"))

    return made_once(tmp_path_factory, "page", make) / "report.html"
