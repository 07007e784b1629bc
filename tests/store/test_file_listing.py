"""Lists of many files: the same records, whether a run of them is packed or not."""

import base64
import json
import os
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fusestore.data import FusedDataset, StreamingFusedDataset
from fusestore.errors import InvalidInputError
from fusestore.fuse.layout import fused_arrays, shared_arrays
from fusestore.fuse.manifest import FusedManifest
from fusestore.storage.location import Location
from fusestore.store import file_listing
from fusestore.store.arrays import array_metadata
from fusestore.store.file_listing import FileListing, FileRun, file_records
from fusestore.store.receipts import FileRecord, receipt_path, shard_part
from tests.helpers.whole_dataset import write_dataset

MANY = 15_000
RECORD = FileRecord(num_bytes=7, sha256="ab" * 32)
PACKED = {
    "sizes_base64": base64.b64encode(np.full(3, 7, "<i8").tobytes()).decode(),
    "sha256_base64": base64.b64encode(b"\xab" * 96).decode(),
}


def listed(entries):
    return file_records({"files": entries}, "manifest.json")


@example(dict.fromkeys(["ids/c/0/0", "ids/c/1/0", "ids/c/01/0"], RECORD), 2)
@given(
    st.dictionaries(
        st.sampled_from(
            [f"ids/c/{n}/0" for n in range(8)]
            + [f"kind/c/{n}" for n in range(8)]
            + [receipt_path(shard_part(n)) for n in range(8)]
            + ["zarr.json", "ids/zarr.json", "local/receipts/000000.json", "ids/c/01/0", "c/0"]
        ),
        st.builds(
            FileRecord,
            num_bytes=st.integers(0, 2**63 - 1),
            sha256=st.binary(min_size=32, max_size=32).map(bytes.hex),
        ),
    ),
    st.integers(1, 9),
)
def test_packing_changes_no_record(records, least):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_listing, "LEAST", least)
        listing = FileListing.of(records)
    assert dict(listing) == records
    assert len(listing) == len(records)
    assert listing.keys() == records.keys()
    stored = json.loads(json.dumps(listing.to_json()))
    again = listed(stored)
    assert dict(again) == records
    assert again.to_json() == stored
    for path in ("ids/c/8/0", "ids/c/00/0", "ids/c/-1/0", "receipts/0.json", "ids/c/1", ""):
        assert (path in again) == (path in records)
        assert again.get(path) == records.get(path)


def test_a_long_run_is_one_value():
    records = {f"ids/c/{n}/0": RECORD for n in range(MANY)}
    records |= {receipt_path(shard_part(n)): RECORD for n in range(MANY)}
    stored = FileListing.of(records | {"zarr.json": RECORD}).to_json()
    assert list(stored) == ["zarr.json", "ids/c/{0..14999}/0", "receipts/{000000..014999}.json"]
    short = {f"ids/c/{n}/0": RECORD for n in range(99)}
    assert list(FileListing.of(short).to_json()) == list(short)


def test_a_listing_that_was_read_keeps_its_form():
    records = {f"ids/c/{n}/0": RECORD.model_dump() for n in range(200)}
    assert listed(records).to_json() == records


@pytest.mark.parametrize(
    "entries",
    [
        {"ids/c/{0..3}/0": PACKED},
        {"ids/c/{0..1}/0": PACKED},
        {"ids/c/{1..3}/0": PACKED},
        {"ids/c/{0..02}/0": PACKED},
        {"ids/c/{0..999999999999}/0": PACKED},
        {"ids/c/0": PACKED},
        {"../c/{0..2}": PACKED},
        {"/c/{0..2}": PACKED},
        {"ids/c/{0..2}/..": PACKED},
        {"ids/c/{0..2}/0": {**PACKED, "sha256_base64": "!"}},
        {"ids/c/{0..2}/0": {**PACKED, "sha256_base64": "AAAA"}},
        {
            "ids/c/{0..2}/0": {
                **PACKED,
                "sizes_base64": base64.b64encode(np.full(3, -1, "<i8").tobytes()).decode(),
            }
        },
        {"ids/c/{0..2}/0": PACKED, "ids/c/{0..2}": PACKED},
        {"ids/c/{0..2}/0": PACKED, "ids/c/{00..02}/0": PACKED},
        {"ids/c/{0..2}/0": PACKED, "ids/c/1/0": RECORD.model_dump()},
        {"ids/c/{0..2}/0": PACKED, "ids/c/1": RECORD.model_dump()},
        {"ids/c/{0..2}": PACKED, "ids/c/1/0": RECORD.model_dump()},
        {"ids/c/{0..2}/a": PACKED, "ids/c/1/A": RECORD.model_dump()},
        {"a/{0..2}/c": PACKED, "a/1/c/{0..2}": PACKED},
    ],
)
def test_a_wrong_run_is_refused(entries):
    with pytest.raises(InvalidInputError):
        listed(entries)


class TestManyShards:
    """A dataset of 15,000 shards is opened with as few reads as one of three."""

    @pytest.fixture(scope="class")
    def folders(self, tmp_path_factory):
        folder, _ = write_dataset(
            tmp_path_factory.mktemp("many") / "local",
            num_tokens=3_000,
            window_length=100,
            rows_per_shard=1_000,
        )
        manifest = FusedManifest.load(Location.parse(folder / "manifest.json"))
        rows, tokens = 1_000, MANY * 1_000
        recipe = manifest.plan.recipe.model_copy(update={"rows_per_shard": rows})
        plan = manifest.plan.model_copy(update={"recipe": recipe, "num_tokens": tokens})
        for form, arrays in (("local", fused_arrays), ("shared", shared_arrays)):
            specs = arrays(tokens, recipe.top_k, rows)
            runs = {
                f"{spec.name}/c/": FileRun(
                    f"{spec.name}/c/",
                    spec.file_name(0).removeprefix(f"{spec.name}/c/0"),
                    1,
                    np.full(spec.num_files, _size(spec), np.int64),
                    np.zeros((spec.num_files, 32), np.uint8),
                )
                for spec in specs
            }
            changed = {
                "form": form,
                "plan": plan,
                "num_tokens": tokens,
                "num_windows": tokens // 100,
                "files": FileListing({}, runs),
            }
            place = folder.parent / form
            for spec in specs:
                (place / spec.name).mkdir(parents=True, exist_ok=True)
                (place / spec.name / "zarr.json").write_bytes(array_metadata(spec))
            many = manifest.model_copy(update=changed).to_bytes()
            assert len(many) < 700 * MANY
            (place / "manifest.json").write_bytes(many)
        return folder.parent

    @pytest.mark.parametrize("form", ["local", "shared"])
    def test_opening_reads_no_shard(self, folders, form, tmp_path):
        opened = _watched(
            lambda: StreamingFusedDataset(folders / form, cache_dir=tmp_path), folders
        )
        assert opened.count("manifest.json") == 1
        assert len(opened) <= 12

    def test_mapping_reads_no_shard(self, folders):
        opened = _watched(lambda: FusedDataset(folders / "local"), folders)
        assert opened.count("manifest.json") == 1
        assert len(opened) <= 10


def _size(spec):
    if spec.codec == "raw":
        return int(np.prod(spec.chunk_shape)) * np.dtype(spec.dtype).itemsize + 4
    return 10_000


_HOOKED: list[bool] = []
_WATCHED: list[str] = []
_below: list[str] = []


def _hook(event, args):
    if _below and event in ("open", "os.scandir", "os.listdir"):
        path = os.fspath(args[0]) if isinstance(args[0], str | os.PathLike) else ""
        if path.startswith(_below[0]):
            _WATCHED.append(os.path.basename(path))  # noqa: PTH119 - text of an event


def _watched(action, below):
    """The names of what an action opens or lists below a folder."""
    if not _HOOKED:
        # A hook cannot be removed.
        sys.addaudithook(_hook)
        _HOOKED.append(True)
    _WATCHED.clear()
    _below[:] = [str(below)]
    try:
        action()
    finally:
        _below.clear()
    return list(_WATCHED)
