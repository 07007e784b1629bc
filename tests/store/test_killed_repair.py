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
    for moment in (2, 3, 4 if artifact == "fused/f" else 8):
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


@pytest.mark.parametrize(
    "file", [pytest.param("tail/c/0", marks=pytest.mark.slow), "manifest.json"]
)
def test_a_killed_repair_of_a_fused_dataset_is_finished_by_the_same_repair(fusion, tmp_path, file):
    """Whenever it was killed: what it left is still damaged, or whole."""
    path = f"{fusion.artifacts['fused/f']}/{file}"
    damaged = {**fusion.whole, path: fusion.whole[path][:-9] + b"123456789"}
    ended, moment = False, 0
    while not ended:
        moment += 3
        store = Store.open(write_files(tmp_path / "store", damaged))
        try:
            with watched(store.location.path, kill_at=moment):
                repair_store(store, "fused/f")
            ended = True
        except Killed:
            repairs = repair_store(store, "fused/f")
            assert [each.problem for each in repairs.values()] in ([], [None]), moment
        found = files_below(store.location.path)
        different = {name for name in fusion.whole if found.get(name) != fusion.whole[name]}
        assert not different, (moment, different)
        # A lock or a temporary file of the last operations may stay until `gc`.
        left = found.keys() - fusion.whole.keys()
        assert all("/.tmp-" in name for name in left), (moment, left)
        shutil.rmtree(store.location.path)
    assert moment > 4
