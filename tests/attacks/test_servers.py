"""Servers that never end, send other bytes than they were asked for, or send somewhere else."""

import time

import pytest

import fusestore as fs
from fusestore.data import StreamingFusedDataset
from fusestore.errors import StorageError
from fusestore.storage.location import Location
from tests.helpers.hostile_server import HOSTILE, ByteASecond, IgnoresRanges, SendsMoreThanItSays
from tests.helpers.limits import SECONDS, refused
from tests.helpers.range_server import RangeServer


@pytest.mark.parametrize("handler", HOSTILE)
def test_a_hostile_server_is_given_up(tmp_path, handler):
    with RangeServer(tmp_path, handler) as server:
        begin = time.monotonic()
        refused((Location.parse(server.url) / "fused/x/manifest.json").read_bytes)
        assert time.monotonic() - begin < SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("handler", HOSTILE)
def test_whatever_is_opened_there(tmp_path, handler):
    with RangeServer(tmp_path, handler) as server:
        for attack in (
            lambda: fs.open_cache(server.url, "x"),
            lambda: StreamingFusedDataset(f"{server.url}/fused/x", cache_dir=tmp_path),
            lambda: fs.open_fused(server.url, "x", cache_dir=tmp_path),
        ):
            begin = time.monotonic()
            refused(attack)
            # One request, or two.
            assert time.monotonic() - begin < 2 * SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("handler", [IgnoresRanges, SendsMoreThanItSays, ByteASecond])
def test_memory_is_read_into_no_further_than_it_goes(tmp_path, handler):
    target = memoryview(bytearray(1_000))
    with RangeServer(tmp_path, handler) as server:
        file = Location.parse(server.url) / "x"
        refused(lambda: file.read_into(0, target))
        # Whoever names a text to read takes as much of it as its server says there is.
        if handler is ByteASecond:
            with pytest.raises(StorageError):
                file.download(tmp_path / "x")
            assert (tmp_path / "x").stat().st_size < 2**20
