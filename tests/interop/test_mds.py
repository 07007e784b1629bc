"""MDS shards, read by hand, and by the reader and written by the writer of mosaicml-streaming."""

import importlib
import importlib.util
import itertools
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from fusestore.errors import IncompatibleError
from fusestore.interop import export_mds
from fusestore.interop.export import export_cache
from tests.helpers.foreign_rows import make_teacher, written

COLUMNS = {
    "document": "int",
    "has_row": "ndarray:uint8",
    "ids": "ndarray:int32",
    "input_ids": "ndarray:int32",
    "label_logprob": "ndarray:float32",
    "logprobs": "ndarray:float32",
    "tail": "ndarray:float32",
}


@pytest.fixture(scope="module")
def teacher():
    return make_teacher()


@pytest.fixture(params=[None, 6_500])
def exported(tmp_path, teacher, monkeypatch, request):
    """A folder of one shard, or of several; and its cache, which lacks some rows."""
    if request.param is not None:
        monkeypatch.setattr(export_mds, "SIZE_LIMIT", request.param)
    has_row = np.ones(teacher.tokens.num_tokens, np.bool_)
    has_row[[3, 4, 60]] = False
    store, cache = written(tmp_path, teacher, profile="lossless", has_row=has_row, k=5)
    export_cache(store, "a", "mds", tmp_path / "shards")
    return tmp_path / "shards", cache


def check(samples, cache):
    """The samples are the documents of the cache."""
    assert len(samples) == cache.tokens.num_documents
    for number, sample in enumerate(samples):
        assert list(sample) == list(COLUMNS)
        rows = cache.document(number)
        start, stop = cache.document_offsets[number : number + 2]
        assert sample["document"] == number
        np.testing.assert_array_equal(sample["input_ids"], cache.tokens.document(number)[0])
        np.testing.assert_array_equal(sample["has_row"], cache.kept.mask(start, stop))
        for name in ("ids", "logprobs", "tail", "label_logprob"):
            expected = getattr(rows, name)
            assert sample[name].dtype == expected.dtype
            np.testing.assert_array_equal(sample[name], expected)
        gone = sample["has_row"] == 0
        assert np.isneginf(sample["logprobs"][gone]).all()
        assert np.isnan(sample["tail"][gone]).all()


def by_hand(folder):
    """The samples, by the description of the layout."""
    index = json.loads((folder / "index.json").read_text())
    assert index["version"] == 2
    for shard in index["shards"]:
        data = (folder / shard["raw_data"]["basename"]).read_bytes()
        assert len(data) == shard["raw_data"]["bytes"]
        (count,) = np.frombuffer(data, "<u4", 1)
        assert count == shard["samples"]
        offsets = np.frombuffer(data, "<u4", count + 1, 4)
        assert json.loads(data[4 * (count + 2) : offsets[0]])["column_names"] == list(COLUMNS)
        assert offsets[-1] == len(data)
        for start, stop in itertools.pairwise(offsets):
            part = data[start:stop]
            sizes = [*np.frombuffer(part, "<u4", 6)]
            sample, at = {}, 24
            for name, encoding in COLUMNS.items():
                size = 8 if encoding == "int" else int(sizes.pop(0))
                value = part[at : at + size]
                at += size
                if encoding == "int":
                    sample[name] = int(np.frombuffer(value, "<i8")[0])
                    continue
                dimensions, width = value[0] >> 2, 2 ** (value[0] & 3)
                shape = np.frombuffer(value, f"<u{width}", dimensions, 1)
                content = value[1 + dimensions * width :]
                sample[name] = np.frombuffer(content, encoding.partition(":")[2]).reshape(shape)
            assert at == stop - start
            yield sample


def test_by_hand(exported):
    folder, cache = exported
    check(list(by_hand(folder)), cache)


@pytest.fixture
def streaming(monkeypatch):
    """Modules of mosaicml-streaming.

    Only those are imported that read and write shards: the package's own `__init__` needs
    torchvision.
    """
    found = importlib.util.find_spec("streaming")
    if found is None or not found.submodule_search_locations:
        pytest.skip("mosaicml-streaming is not installed")
    root = Path(found.submodule_search_locations[0])
    if not (root / "base/format/mds").is_dir():
        pytest.skip("mosaicml-streaming is not installed")
    for name in (
        "streaming",
        "streaming.base",
        "streaming.base.format",
        "streaming.base.format.mds",
    ):
        module = ModuleType(name)
        module.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        monkeypatch.setitem(sys.modules, name, module)
    reader = importlib.import_module("streaming.base.format.mds.reader")
    writer = importlib.import_module("streaming.base.format.mds.writer")
    return reader.MDSReader, writer.MDSWriter


def test_by_its_own_reader(exported, streaming):
    folder, cache = exported
    reader, _ = streaming
    samples = []
    for shard in json.loads((folder / "index.json").read_text())["shards"]:
        opened = reader.from_json(str(folder), "", shard)
        opened.validate(allow_unsafe_types=False)
        samples += [opened[number] for number in range(len(opened))]
    check(samples, cache)


def test_its_own_writer_writes_the_same_bytes(exported, streaming, tmp_path):
    folder, _ = exported
    _, writer = streaming
    out = tmp_path / "theirs"
    limit = export_mds.SIZE_LIMIT
    with writer(out=str(out), columns=COLUMNS, hashes=["sha1"], size_limit=limit) as target:
        for sample in by_hand(folder):
            target.write(sample)
    names = sorted(each.name for each in folder.iterdir())
    assert names == sorted(each.name for each in out.iterdir())
    for name in names:
        assert (folder / name).read_bytes() == (out / name).read_bytes()


def test_what_a_shard_cannot_hold(tmp_path, teacher, monkeypatch):
    monkeypatch.setattr(export_mds, "_MOST_BYTES", 500)
    has_row = np.ones(teacher.tokens.num_tokens, np.bool_)
    store, _ = written(tmp_path, teacher, profile="lossless", has_row=has_row, k=5)
    with pytest.raises(IncompatibleError, match=r"A document takes .* at most 500"):
        export_cache(store, "a", "mds", tmp_path / "shards")
    assert not (tmp_path / "shards").exists()
