"""Servers that never end, send other bytes than they were asked for, or send somewhere else."""

import time

import pytest

import fusestore as fs
from fusestore.data import StreamingFusedDataset
from fusestore.errors import StorageError
from fusestore.storage import retries, s3
from fusestore.storage.location import Location
from fusestore.storage.options import S3Options
from tests.helpers.hostile_server import (
    HOSTILE,
    ByteASecond,
    HeaderBytes,
    IgnoresRanges,
    SendsMoreThanItSays,
)
from tests.helpers.limits import SECONDS, refused
from tests.helpers.own_certificate import own_certificate
from tests.helpers.range_server import RangeHandler, RangeServer


@pytest.mark.parametrize("handler", HOSTILE)
def test_a_hostile_server_is_given_up(tmp_path, handler):
    with RangeServer(tmp_path, handler) as server:
        begin = time.monotonic()
        refused((Location.parse(server.url) / "fused/x/manifest.json").read_bytes)
        assert time.monotonic() - begin < SECONDS


def test_headers_that_never_end_are_given_up(tmp_path, monkeypatch):
    """As a server that says nothing: after `read_timeout`, which covers the headers."""
    monkeypatch.setattr(retries, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(s3, "_REGION_TIMEOUT_S", 0.3)
    with RangeServer(tmp_path, HeaderBytes) as server:
        begin = time.monotonic()
        file = Location.parse(f"{server.url}/x", {"read_timeout": 0.3})
        refused(file.read_bytes, "took too long")
        assert time.monotonic() - begin < SECONDS
        begin = time.monotonic()
        options = S3Options(endpoint_url=server.url)
        assert s3.region_of_bucket("s3://bucket", options) is None
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


def test_no_redirect_leads_from_https_to_http(tmp_path, monkeypatch):
    """The limit of redirects is ten, and no `Authorization` goes to another host: test_secrets."""
    tls, trusted = own_certificate(tmp_path)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(trusted))
    (tmp_path / "x").write_bytes(b"hello")

    class Downgrading(RangeHandler):
        def _answer(self, send):
            self._reply(302, b"", send, ("Location", f"{plain.url}{self.path}"))

    with (
        RangeServer(tmp_path) as plain,
        RangeServer(tmp_path, tls=tls) as encrypted,
        RangeServer(tmp_path, Downgrading, tls) as downgrading,
        RangeServer(tmp_path, Downgrading) as redirecting,
    ):
        for server in (plain, encrypted, redirecting):
            assert (Location.parse(server.url) / "x").read_bytes() == b"hello"
        before = len(plain.requests)
        refused((Location.parse(downgrading.url) / "x").read_bytes, "redirects from https to http")
        assert len(plain.requests) == before
