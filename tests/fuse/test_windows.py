"""How documents are packed into windows, and what a dataset of either packing gives."""

import itertools
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fusestore as fs
from fusestore.fuse.begin import reopen
from fusestore.fuse.folder import FusedFolder
from fusestore.fuse.materialize import materialize
from fusestore.fuse.packing import window_starts
from fusestore.fuse.recipe import Recipe
from fusestore.fuse.resolve import find_inputs
from fusestore.fuse.shared import pack_fused, unpack_fused
from fusestore.storage.location import Location
from fusestore.store.layout import Store
from fusestore.workflows.repair import repair_store
from fusestore.workflows.verification import verify_store
from tests.helpers.small_store import make_small_store

LENGTH = 7


@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=8), length=st.integers(1, 9))
def test_windows_cover_every_position_once(lengths, length):
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    document = np.repeat(np.arange(len(lengths)), lengths)
    for packing in ("stream", "document", "whole"):
        length = max(length, *lengths) if packing == "whole" else length
        starts = window_starts(offsets, length, packing)
        assert starts.dtype == np.int64
        assert starts[0] == 0
        assert starts[-1] == offsets[-1]
        sizes = np.diff(starts)
        assert ((sizes > 0) & (sizes <= length)).all()
        if packing == "stream":
            assert (sizes[:-1] == length).all()
            continue
        if packing == "whole":
            # Documents are whole, and the next one did not fit.
            assert set(starts.tolist()) <= set(offsets.tolist())
            following = [min(each for each in offsets if each > stop) for stop in starts[1:-1]]
            assert all(
                next_ - start > length for start, next_ in zip(starts[:-2], following, strict=True)
            )
            continue
        for start, stop in itertools.pairwise(starts):
            assert len(set(document[start:stop])) == 1
            # Only a document's last window is short.
            assert stop - start == length or stop in offsets


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    return make_small_store(folder / "store", folder)


@pytest.fixture
def small(made, tmp_path):
    root = shutil.copytree(made.root, tmp_path / "store")
    return type(made)(Store.open(root), made.target)


def recipe_of(small, **changes):
    return small.recipe(window_length=LENGTH, packing="document", **changes)


def rows_of(dataset, name):
    return np.concatenate([window[name].numpy() for window in dataset])


@pytest.mark.parametrize(
    "granularity", ["document", pytest.param("window", marks=pytest.mark.slow)]
)
def test_no_window_holds_two_documents_in_any_form(small, tmp_path, granularity):
    content = recipe_of(small, granularity=granularity)
    recipe = Recipe.parse(content)
    folder = FusedFolder(
        Location.parse(tmp_path / "whole"), find_inputs(small.store, recipe, small.target)
    )
    manifest = materialize(folder)
    on_demand = fs.open_recipe(small.root, content, "demo")
    whole = fs.data.FusedDataset(folder.location.path)
    pack_fused(folder.location, Location.parse(tmp_path / "shared"))
    unpack_fused(Location.parse(tmp_path / "shared"), Location.parse(tmp_path / "again"))
    again = fs.data.FusedDataset(tmp_path / "again")
    stream = fs.open_recipe(small.root, {**content, "packing": "stream"}, "stream")
    assert len(whole) == len(on_demand) == len(again) == manifest.num_windows > len(stream)
    for window in range(len(whole)):
        assert len(whole.documents(window)) == 1
        assert 0 < len(whole[window]["input_ids"]) <= LENGTH
        for other in (on_demand, again):
            for key, values in whole[window].items():
                assert values.tolist() == other[window][key].tolist()
    with pytest.raises(IndexError):
        whole[len(whole)]
    for name in ("input_ids", "next_ids"):
        assert rows_of(whole, name).tolist() == rows_of(stream, name).tolist()
    assert not any(verify_store(small.store).values())
    starts = small.store.fused("demo").path / "window_starts/c/0"
    starts.write_bytes(starts.read_bytes()[:-1] + b"x")
    (finding,) = verify_store(small.store, "fused/demo")["fused/demo"]
    assert finding.file == "window_starts/c/0"
    assert repair_store(small.store, "fused/demo")["fused/demo"].problem is None
    assert not any(verify_store(small.store).values())


def test_packing_is_part_of_the_identity(small):
    plans = {
        find_inputs(small.store, Recipe.parse(small.recipe(packing=packing))).recipe.digest
        for packing in ("stream", "document")
    }
    assert len(plans) == 2


@pytest.mark.slow
def test_a_begun_dataset_in_a_bucket_is_read_by_documents(small, s3_url, tmp_path):
    remote = Store.open(f"{s3_url}/store")
    fs.sharing.copy_artifacts(small.store, remote, None)
    begun = fs.open_recipe(small.root, recipe_of(small), "demo")
    recipe = Recipe.parse(recipe_of(small))
    FusedFolder(remote.fused("demo"), find_inputs(remote, recipe)).begin()
    dataset = fs.open_fused(remote.location, "demo", cache_dir=tmp_path / "cache")
    assert len(dataset) == len(begun)
    assert dataset[3]["input_ids"].tolist() == begun[3]["input_ids"].tolist()
    assert reopen(remote, remote.fused("demo")).num_shards > 1
