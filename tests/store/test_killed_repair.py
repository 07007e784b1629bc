"""A repair that is killed can be repeated: it never destroys what it repairs from."""

import shutil

import pytest

from fusestore.store.layout import Store
from fusestore.workflows.repair import repair_store
from tests.helpers.disk_operations import Killed, watched
from tests.helpers.small_fusion import SmallFusion, files_below, write_files


@pytest.fixture(scope="module")
def fusion(tmp_path_factory: pytest.TempPathFactory) -> SmallFusion:
    return SmallFusion.make(tmp_path_factory.mktemp("fusion"))


@pytest.mark.parametrize("artifact", ["fused/f", "alignment/a"])
def test_a_killed_repair_of_a_fingerprint_loses_no_recipe(fusion, tmp_path, artifact):
    """The manifest has it too: one of the two is always there."""
    file = f"{fusion.artifacts[artifact]}/fingerprint.json"
    damaged = {**fusion.whole, file: b"{}"}
    folder = fusion.artifacts[artifact]
    for moment in (2, 3, 8):
        store = Store.open(write_files(tmp_path / "store", damaged))
        with pytest.raises(Killed), watched(store.location.path, kill_at=moment):
            repair_store(store, artifact)
        left = files_below(store.location.path)
        sealed = (f"{folder}/manifest.json", file)
        assert any(left.get(path) == fusion.whole[path] for path in sealed), moment
        repair_store(store, artifact)
        # What was left unfinished is no damage: the same command finishes it.
        fusion.stages[artifact](store)
        found = files_below(store.location.path)
        assert {path: found.get(path) for path in fusion.whole} == fusion.whole, moment
        shutil.rmtree(store.location.path)
