"""The memory-mapped dataset against the arrays it was made of."""

import json
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from fusestore.data import BatchOrder, FusedDataset, collate, open_fused
from fusestore.data.windows import Windows
from fusestore.errors import CorruptionError, InvalidInputError, NotFoundError
from fusestore.storage.location import Location
from fusestore.storage.publish import publish
from fusestore.store import copy
from fusestore.store.manifest import canonical_json, digest_bytes
from tests.helpers.fused_folder import random_arrays, write_fused

FIELDS = {
    "input_ids": "input_ids",
    "next_ids": "next_ids",
    "fused_ids": "ids",
    "fused_logprobs": "logprobs",
    "fused_tail": "tail",
}


@pytest.fixture
def arrays():
    return random_arrays(500)


@pytest.fixture
def folder(tmp_path, arrays):
    path = tmp_path / "store" / "fused" / "demo"
    path.parent.mkdir(parents=True)
    return write_fused(path, arrays, window_length=32, chunk_rows=64)


def assert_window(sample, arrays, window, length):
    rows = slice(window * length, (window + 1) * length)
    for field, name in FIELDS.items():
        assert np.array_equal(sample[field].numpy(), arrays[name][rows]), field
    assert np.array_equal(sample["fused_mask"].numpy(), arrays["kind"][rows] > 0)
    assert int(sample["window"]) == window


def test_windows_are_the_arrays(folder, arrays):
    dataset = open_fused(folder.parent.parent, "demo")
    assert len(dataset) == 16
    assert (dataset.num_tokens, dataset.top_k, dataset.window_length) == (500, 4, 32)
    for window in range(16):
        assert_window(dataset[window], arrays, window, 32)
    assert len(dataset[15]["input_ids"]) == 500 - 15 * 32
    assert int(dataset[-1]["window"]) == 15
    for window, sample in zip((3, 0), dataset.__getitems__([3, 0]), strict=True):
        assert_window(sample, arrays, window, 32)
    with pytest.raises(IndexError):
        dataset[16]
    assert dataset.documents(1) == sorted(set(arrays["document"][32:64].tolist()))
    assert dataset.largest_token_id() == max(arrays["input_ids"].max(), arrays["ids"].max())


@settings(max_examples=15, deadline=None)
@given(
    num_tokens=st.integers(1, 90),
    window_length=st.integers(1, 100),
    chunk_rows=st.integers(1, 100),
    chosen=st.lists(st.integers(0, 89), min_size=1, max_size=9),
)
def test_any_chunking(tmp_path_factory, num_tokens, window_length, chunk_rows, chosen):
    arrays = random_arrays(num_tokens, k=2, vocab_size=9)
    folder = tmp_path_factory.mktemp("fused") / "x"
    write_fused(folder, arrays, window_length=window_length, chunk_rows=chunk_rows)
    dataset = FusedDataset(folder)
    for window in range(len(dataset)):
        assert_window(dataset[window], arrays, window, window_length)
    # Of any lengths, and any of them twice.
    chosen = [window % len(dataset) for window in chosen]
    for window, sample in zip(chosen, dataset.__getitems__(chosen), strict=True):
        assert_window(sample, arrays, window, window_length)
    for apart in (False, True):
        together = dataset.__getitems__(chosen)
        batch = collate(together, document_masking=apart)
        assert isinstance(together, Windows)
        assert not together.is_cut
        expected = collate([dataset[window] for window in chosen], document_masking=apart)
        assert batch.keys() == expected.keys()
        for name, values in expected.items():
            assert batch[name].dtype == values.dtype
            assert torch.equal(batch[name], values), name


def test_windows_of_a_batch_are_a_sequence(folder, arrays):
    together = FusedDataset(folder).__getitems__([5, -1, 0])
    assert len(together) == 3
    assert_window(together[0], arrays, 5, 32)
    assert_window(together[-1], arrays, 0, 32)
    assert [int(sample["window"]) for sample in together[:2]] == [5, 15]
    with pytest.raises(IndexError):
        together[3]
    # As from a worker whose collate_fn leaves them alone.
    copied = pickle.loads(pickle.dumps(together))  # noqa: S301
    for window, sample in zip((5, 15, 0), copied, strict=True):
        assert_window(sample, arrays, window, 32)
    # What was put into a sample counts, and so does what was written into its tensors.
    together[1]["next_ids"] = torch.full((len(together[1]["next_ids"]),), -100)
    together[0]["fused_mask"][3] = False
    batch = collate(together)
    assert (batch["next_ids"][1] == -100).all()
    assert not batch["fused_mask"][0, 3]
    default = torch.utils.data.default_collate(
        cast("list[Any]", FusedDataset(folder).__getitems__([5, 0]))
    )
    assert default["window"].tolist() == [5, 0]
    assert default["fused_ids"].shape == (2, 32, 4)


def test_windows_of_a_batch_are_independent(folder, arrays):
    dataset = FusedDataset(folder)
    first, second, again = dataset.__getitems__([3, 4, 3])
    for value in second.values():
        value.zero_()
    for window, sample in ((3, first), (3, again), (4, dataset[4])):
        assert_window(sample, arrays, window, 32)


def test_more_files_than_are_kept_open(tmp_path, monkeypatch):
    arrays = random_arrays(64)
    write_fused(tmp_path / "x", arrays, window_length=4, chunk_rows=2)
    monkeypatch.setattr("fusestore.data.mapped._MAX_OPEN_MAPS", 3)
    dataset = FusedDataset(tmp_path / "x")
    for windows in ([0, 15, 7], [15, 0, 3], [7, 7, 8]):
        for window, sample in zip(windows, dataset.__getitems__(windows), strict=True):
            assert_window(sample, arrays, window, 4)
    assert all(len(array._maps) <= 3 for array in dataset._arrays.values())


def test_reading_a_window_copies_only_what_it_returns(tmp_path):
    arrays = random_arrays(40_960, k=32, vocab_size=50)
    write_fused(tmp_path / "x", arrays, window_length=2_048, chunk_rows=16_384)
    dataset = FusedDataset(tmp_path / "x")
    dataset[3]  # checks the shard's checksums
    tracemalloc.start()
    try:
        sample = dataset[4]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    returned = sum(value.nbytes for value in sample.values())
    assert len(sample["input_ids"]) == 2_048
    assert peak < 1.05 * returned


@pytest.mark.parametrize("method", ["fork", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_workers_see_the_same(folder, method):
    dataset = FusedDataset(folder)
    dataset[0]
    order = BatchOrder(len(dataset), 3, seed=1, epoch=0)
    options: dict[str, Any] = {"batch_sampler": order, "collate_fn": collate}
    alone = list(DataLoader(dataset, **options))
    shared = list(DataLoader(dataset, num_workers=2, multiprocessing_context=method, **options))
    assert len(alone) == len(shared) == 6
    for one, other in zip(alone, shared, strict=True):
        for name in one:
            assert torch.equal(one[name], other[name]), name


def test_pickles_without_open_files(folder, arrays):
    dataset = FusedDataset(folder)
    dataset[0]
    content = pickle.dumps(dataset)
    assert len(content) < 10_000
    assert_window(pickle.loads(content)[2], arrays, 2, 32)  # noqa: S301


@pytest.mark.slow
def test_workers_import_no_polars_zarr_or_obstore():
    code = (
        "import sys, fusestore.data, fusestore.data.on_demand, fusestore.data.shard_maker;"
        "heavy = {'polars', 'zarr', 'obstore', 'numba', 'transformers'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["input_ids/c/2", "logprobs/c/2/0"])
def test_damage_is_found_on_first_touch(folder, name):
    path = folder / name
    content = bytearray(path.read_bytes())
    for damaged, message in (
        (bytes([content[0] ^ 1]) + bytes(content[1:]), "checksum"),
        (bytes(content[:-1]), "bytes; expected"),
    ):
        path.write_bytes(damaged)
        dataset = FusedDataset(folder)
        dataset[0]
        with pytest.raises(CorruptionError, match=message):
            dataset[4]
    path.unlink()
    with pytest.raises(CorruptionError, match="missing"):
        FusedDataset(folder)[4]


def test_incomplete_and_wrong_folders(folder, tmp_path):
    with pytest.raises(NotFoundError, match="fusestore fuse"):
        open_fused(tmp_path / "store", "other")
    metadata = folder / "tail" / "zarr.json"
    good = metadata.read_text()
    metadata.write_text(good.replace("crc32c", "zstd"))
    with pytest.raises(CorruptionError, match="memory-mapped"):
        FusedDataset(folder)
    metadata.write_text("[]")
    with pytest.raises(CorruptionError, match="metadata"):
        FusedDataset(folder)
    metadata.write_text(good.replace("500", "499"))
    with pytest.raises(CorruptionError, match="differ in length"):
        FusedDataset(folder)
    metadata.write_text(good.replace("float32", "int32"))
    with pytest.raises(CorruptionError, match="1 axes of int32; expected 1 of float32"):
        FusedDataset(folder)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(CorruptionError, match="manifest"):
        FusedDataset(folder)


def test_no_tokens(tmp_path):
    write_fused(tmp_path / "x", random_arrays(0), window_length=8, chunk_rows=8)
    with pytest.raises(InvalidInputError, match="nothing to train"):
        FusedDataset(tmp_path / "x")


@pytest.fixture
def remote(folder, s3_url):
    """The dataset in a bucket."""
    remote = Location.parse(s3_url) / "some.store"
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            publish(remote / "fused/demo" / path.relative_to(folder).as_posix(), path.read_bytes())
    return remote


def test_remote_is_copied_once(remote, arrays, tmp_path):
    cache = tmp_path / "cache"
    publish(remote / "fused/demo/not-listed", b"1")
    dataset = open_fused(remote, "demo", cache_dir=cache)
    for window in range(len(dataset)):
        assert_window(dataset[window], arrays, window, 32)
    assert not (dataset.folder / "not-listed").exists()
    (remote / "fused/demo/tail").delete()
    again = open_fused(remote, "demo", cache_dir=cache)
    assert_window(again[5], arrays, 5, 32)
    assert len(list((cache / "fused").iterdir())) == 1


def test_a_copy_that_was_cut_short_goes_on(remote, folder, arrays, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    name = "logprobs/c/3/0"
    good = (folder / name).read_bytes()
    publish(remote / "fused/demo" / name, good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(CorruptionError, match=name):
        open_fused(remote, "demo", cache_dir=cache)
    (partial,) = (cache / "fused").iterdir()
    there = {path for path in partial.rglob("*") if path.is_file()}
    assert there
    assert partial / name not in there
    # What was damaged here meanwhile is copied again, too.
    damaged = partial / "tail/c/1"
    damaged.write_bytes(damaged.read_bytes()[::-1])
    publish(remote / "fused/demo" / name, good)
    copied = []
    original = copy.copy_file
    monkeypatch.setattr(
        copy, "copy_file", lambda *args: (copied.append(args[1].path), original(*args))
    )
    dataset = open_fused(remote, "demo", cache_dir=cache)
    assert sorted(copied) == [partial / name, damaged]
    for window in range(len(dataset)):
        assert_window(dataset[window], arrays, window, 32)
    assert list((cache / "fused").iterdir()) == [dataset.folder]


@pytest.mark.parametrize(
    "path", ["../evil", "/etc/passwd", "a/../../evil", "", "a//b", "a\\b", "\0"]
)
def test_a_path_outside_the_dataset_is_refused(s3_url, folder, tmp_path, path):
    """Nothing is asked for but the manifest, so nothing else lies there."""
    remote = Location.parse(s3_url) / "some.store"
    content = json.loads((folder / "manifest.json").read_bytes())
    content.pop("checksum")
    content["files"][path] = {"num_bytes": 1, "sha256": "0" * 64}
    content["checksum"] = digest_bytes(canonical_json(content))
    publish(remote / "fused/demo/manifest.json", canonical_json(content))
    with pytest.raises(InvalidInputError, match="no path inside its folder"):
        open_fused(remote, "demo", cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache/fused").iterdir())
