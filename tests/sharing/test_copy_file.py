"""One file from anywhere to anywhere: what arrives is what the record says, or nothing arrives."""

import boto3
import numpy as np
import pytest

from fusestore.errors import CorruptionError, InvalidInputError
from fusestore.storage.location import Location
from fusestore.storage.publish import publish
from fusestore.store import copy
from fusestore.store.copy import copy_file, copy_missing, matches
from fusestore.store.receipts import FileRecord
from tests.helpers.places import PLACES

DATA = bytes(range(256)) * 3


@pytest.fixture(params=[100, len(DATA), len(DATA) + 1], ids=lambda size: f"chunks of {size}")
def _piece(request, monkeypatch):
    monkeypatch.setattr(copy, "CHUNK_BYTES", request.param)


@pytest.fixture
def origin(request, s3_url, tmp_path):
    """A place to copy from, apart from the one to copy to."""
    return Location.parse({"local": tmp_path, "s3": s3_url}[request.param]) / "origin"


@pytest.mark.parametrize("place", PLACES, indirect=True)
@pytest.mark.parametrize("origin", ["local", "s3"], indirect=True)
@pytest.mark.usefixtures("_piece")
class TestEveryWay:
    @pytest.mark.parametrize("data", [DATA, b"x", b""])
    def test_bytes_arrive(self, place, origin, data):
        source, target = origin / "file", place.location / "a" / "file"
        publish(source, data)
        copy_file(source, target, FileRecord.of(data))
        assert target.read_bytes() == data
        assert matches(target, FileRecord.of(data))
        assert (place.location / "a").list() == ["file"]

    @pytest.mark.parametrize("change", ["flipped", "cut", "missing"])
    def test_damage_does_not_arrive(self, place, origin, change):
        source, target = origin / "file", place.location / "file"
        if change != "missing":
            publish(source, {"flipped": DATA[:-1] + b"!", "cut": DATA[:-1]}[change])
        publish(target, b"before")
        with pytest.raises(CorruptionError, match="missing" if change == "missing" else "damaged"):
            copy_file(source, target, FileRecord.of(DATA))
        assert target.read_bytes() == b"before"
        assert place.location.list() == ["file"]
        assert not matches(target, FileRecord.of(DATA))


@pytest.mark.slow
@pytest.mark.parametrize("place", ["s3"], indirect=True)
def test_a_large_object_is_sent_in_parts(place, tmp_path):
    data = np.random.default_rng(0).bytes(2 * copy.CHUNK_BYTES + 1)
    publish(Location.parse(tmp_path / "file"), data)
    record = FileRecord.of(data)
    copy_file(Location.parse(tmp_path / "file"), place.location / "file", record)
    copy_file(place.location / "file", Location.parse(tmp_path / "back"), record)
    assert (tmp_path / "back").read_bytes() == data
    bucket, _, key = (place.location / "file").url.removeprefix("s3://").partition("/")
    info = boto3.client("s3").head_object(Bucket=bucket, Key=key)
    assert info["ETag"].strip('"').endswith("-3")


@pytest.mark.parametrize("place", PLACES, indirect=True)
@pytest.mark.parametrize("origin", ["local", "s3"], indirect=True)
def test_a_folder_is_copied_as_its_manifest_lists_it(place, origin, monkeypatch):
    content = {"x": DATA, "a/y": DATA[::-1], "a/b/z": b"", "large": DATA * 3}
    monkeypatch.setattr(copy, "CHUNK_BYTES", 2 * len(DATA))
    for path, data in content.items():
        publish(origin / path, data)
    publish(origin / "not-listed", b"1")
    files = {path: FileRecord.of(data) for path, data in content.items()}
    publish(origin / "a/y", DATA)
    with pytest.raises(CorruptionError, match=r"a/y is damaged"):
        copy_missing(origin, place.location, files)
    sound = {path: len(data) for path, data in content.items() if path != "a/y"}
    assert place.location.sizes() == sound
    # Of what arrived, one was changed meanwhile and one is gone.
    publish(origin / "a/y", content["a/y"])
    publish(place.location / "x", DATA[::-1])
    (place.location / "large").delete()
    copied = []
    original = copy.copy_file
    monkeypatch.setattr(copy, "copy_file", lambda *args: (copied.append(args[0]), original(*args)))
    copy_missing(origin, place.location, files)
    assert {source.name for source in copied} == {"x", "y", "large"}
    assert {path: (place.location / path).read_bytes() for path in content} == content
    copied.clear()
    copy_missing(origin, place.location, files)
    assert copied == []
    with pytest.raises(InvalidInputError, match="no path inside its folder"):
        copy_missing(origin, place.location, {**files, "../evil": files["x"]})
