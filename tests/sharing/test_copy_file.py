"""One file from anywhere to anywhere: what arrives is what the record says, or nothing arrives."""

import numpy as np
import pytest

from fusestore.errors import CorruptionError
from fusestore.storage.location import Location
from fusestore.storage.publish import publish
from fusestore.store import copy
from fusestore.store.copy import copy_file, matches
from fusestore.store.receipts import FileRecord
from tests.helpers.places import PLACES

DATA = bytes(range(256)) * 3


@pytest.fixture(params=[100, len(DATA), len(DATA) + 1], ids=lambda size: f"pieces of {size}")
def _piece(request, monkeypatch):
    monkeypatch.setattr(copy, "PIECE_BYTES", request.param)


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


@pytest.mark.parametrize("place", ["s3"], indirect=True)
def test_a_large_object_is_sent_in_parts(place, tmp_path):
    data = np.random.default_rng(0).bytes(2 * copy.PIECE_BYTES + 1)
    publish(Location.parse(tmp_path / "file"), data)
    record = FileRecord.of(data)
    copy_file(Location.parse(tmp_path / "file"), place.location / "file", record)
    copy_file(place.location / "file", Location.parse(tmp_path / "back"), record)
    assert (tmp_path / "back").read_bytes() == data
    info = place.location.filesystem.info((place.location / "file").url)
    assert info["ETag"].strip('"').endswith("-3")
