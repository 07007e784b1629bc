"""Fixtures: the tiny fusion of `tiny_job`, run once and copied by the tests that change it."""

import shutil
from pathlib import Path

import pytest

from tests.helpers.made_once import made_once
from tests.helpers.tiny_job import run_fusion, write_fusion, write_job


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory, smollm2_tokenizer_path: Path) -> Path:
    """Texts and two tiny models: see `write_job`."""

    def make(folder: Path) -> None:
        folder.mkdir()
        write_job(folder, smollm2_tokenizer_path)

    return made_once(tmp_path_factory, "job", make)


@pytest.fixture(scope="session")
def first_store(tmp_path_factory: pytest.TempPathFactory, job: Path) -> Path:
    """The store that an uninterrupted run makes; not to be changed."""

    def make(folder: Path) -> None:
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FUSESTORE_HOME", str(folder / "home"))
            run_fusion(write_fusion(folder, job, str(folder / "store")))

    return made_once(tmp_path_factory, "first", make) / "store"


@pytest.fixture
def store(tmp_path: Path, first_store: Path) -> Path:
    """A copy of the finished store."""
    return Path(shutil.copytree(first_store, tmp_path / "store"))


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: Path) -> None:
    """Checkpoints and fetched datasets of each test in a folder of its own."""
    monkeypatch.setenv("FUSESTORE_HOME", str(tmp_path / "home"))
