"""The shared form: compressed, read by zarr-python, and the very same local form again."""

import numpy as np
import pytest
import zarr

import fusestore as fs
from fusestore.data import FusedDataset
from fusestore.errors import (
    CorruptionError,
    FingerprintMismatchError,
    InvalidInputError,
    NotFoundError,
)
from fusestore.fuse.combine import round_entries
from fusestore.fuse.folder import FusedFolder
from fusestore.fuse.manifest import FusedManifest
from fusestore.fuse.materialize import materialize
from fusestore.fuse.recipe import Recipe
from fusestore.fuse.resolve import find_inputs
from fusestore.fuse.shard import fuse_rows
from fusestore.fuse.shared import pack_fused, unpack_fused
from fusestore.storage.location import Location
from fusestore.store.layout import Store
from fusestore.workflows.verification import verify_store
from tests.helpers.small_store import make_small_store

ARRAYS = ("input_ids", "next_ids", "ids", "logprobs", "tail", "known", "kind", "source", "document")

CHOICES = {"top_k": 40, "min_probability": 0.05, "unaligned": "label", "rows_per_shard": 700}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    return make_small_store(folder / "store", folder)


@pytest.fixture(scope="module")
def local(made):
    """The local form; not to be changed. In the shared form rows have two chunks of columns."""
    recipe = Recipe.parse(made.recipe(**CHOICES))
    folder = FusedFolder(made.store.fused("demo"), find_inputs(made.store, recipe))
    materialize(folder)
    return folder.location


@pytest.fixture
def shared(local, tmp_path):
    location = Location.parse(tmp_path / "shared.store/fused/demo")
    pack_fused(local, location)
    return location


def files(location):
    return {name: (location / name).read_bytes() for name in location.list_recursive()}


def test_there_and_back_gives_the_same_bytes(local, tmp_path, s3_url):
    for root in (tmp_path / "there.store", f"{s3_url}/there.store"):
        shared = Location.parse(root) / "fused/demo"
        packed = pack_fused(local, shared)
        assert packed == FusedManifest.load(shared / "manifest.json")
        back = Location.parse(tmp_path / f"back-{shared.is_local}")
        unpack_fused(shared, back)
        assert files(back) == files(local)
        again = Location.parse(tmp_path / f"again-{shared.is_local}")
        pack_fused(back, again)
        assert files(again) == files(shared)
        assert verify_store(Store.open(root)).get("fused/demo") == []


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
def test_plain_zarr_reads_the_shared_form(local, shared):
    ours = zarr.open_group(str(local.path), mode="r")
    theirs = zarr.open_group(str(shared.path), mode="r")
    for name in ARRAYS:
        np.testing.assert_array_equal(ours[name][:], theirs[name][:], err_msg=name)
    assert sum((shared / name).size() for name in shared.list_recursive() if "/c/" in name) < sum(
        (local / name).size() for name in local.list_recursive() if "/c/" in name
    )


def test_a_shared_dataset_is_opened_like_any_other(local, shared, tmp_path):
    store = shared.parent.parent
    dataset = fs.open_fused(store, "demo", cache_dir=tmp_path / "kept")
    expected = FusedDataset(local.path)
    assert dataset.digest == expected.digest
    for window in range(len(expected)):
        for key, value in expected[window].items():
            assert value.tolist() == dataset[window][key].tolist()
    (shared / "ids").delete()
    again = fs.open_fused(store, "demo", cache_dir=tmp_path / "kept")
    assert again.folder == dataset.folder


def test_a_stopped_conversion_goes_on(local, shared, tmp_path):
    class StoppedError(Exception):
        pass

    def stop(_done, _total):
        raise StoppedError

    for convert, origin, whole in (
        (pack_fused, local, files(shared)),
        (unpack_fused, shared, files(local)),
    ):
        location = Location.parse(tmp_path / convert.__name__)
        with pytest.raises(StoppedError):
            convert(origin, location, stop)
        assert not (location / "manifest.json").exists()
        convert(origin, location)
        assert files(location) == whole
        before = {name: (location / name).path.stat().st_mtime_ns for name in whole}
        convert(origin, location)
        assert before == {name: (location / name).path.stat().st_mtime_ns for name in whole}


def test_what_cannot_be_converted(made, local, shared, tmp_path):
    with pytest.raises(NotFoundError, match="--materialize"):
        pack_fused(Location.parse(tmp_path / "nothing"), at(tmp_path / "a"))
    with pytest.raises(InvalidInputError, match="in the shared form; expected the local"):
        pack_fused(shared, at(tmp_path / "a"))
    with pytest.raises(InvalidInputError, match="in the local form; expected the shared"):
        unpack_fused(local, at(tmp_path / "a"))
    assert not (tmp_path / "a").exists()
    other = FusedFolder(
        at(tmp_path / "other"),
        find_inputs(made.store, Recipe.parse(made.recipe(top_k=2))),
    )
    materialize(other)
    before = files(shared)
    with pytest.raises(FingerprintMismatchError, match="top_k"):
        pack_fused(other.location, shared)
    assert files(shared) == before
    with pytest.raises(FingerprintMismatchError, match="top_k"):
        unpack_fused(shared, other.location)


def at(path):
    return Location.parse(path)


@pytest.mark.parametrize(
    "name", ["ids/c/0/0", "logprobs/c/0/0", "local/receipts/000000.json", "local/manifest.json"]
)
def test_damage_is_found_and_not_passed_on(shared, tmp_path, name):
    data = bytearray((shared / name).read_bytes())
    data[len(data) // 2] ^= 1
    (shared / name).path.write_bytes(bytes(data))
    back = Location.parse(tmp_path / "back")
    with pytest.raises(CorruptionError, match=r"checksum|manifest"):
        unpack_fused(shared, back)
    assert not (back / "manifest.json").exists()
    assert verify_store(Store.open(shared.parent.parent))["fused/demo"] != []


def test_rounded_rows_are_those_of_the_grid_and_need_fewer_bytes(made, local, shared, tmp_path):
    plain = Recipe.parse(made.recipe(**CHOICES))
    rounded = Recipe.parse(made.recipe(**CHOICES, logprob_step=1 / 16))
    folder = FusedFolder(made.store.fused("rounded"), find_inputs(made.store, rounded))
    materialize(folder)
    fusion = find_inputs(made.store, plain)
    rows, _ = fuse_rows(fusion, 0, fusion.num_tokens)
    round_entries(1 / 16, rows.ids, rows.logprobs, rows.tail)
    stored = FusedDataset(folder.location.path)
    read = stored._rows([(0, fusion.num_tokens)])
    for name in ("ids", "logprobs", "tail"):
        np.testing.assert_array_equal(read[name], getattr(rows, name))
    small = Location.parse(tmp_path / "rounded.store/fused/rounded")
    pack_fused(folder.location, small)

    def size(location):
        return sum(len(data) for name, data in files(location).items() if "logprobs/c/" in name)

    assert size(small) < 0.6 * size(shared)
