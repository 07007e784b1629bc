"""Listings of S3: page by page, with a limit to names, files and time."""

import time

import obstore
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from obstore.store import MemoryStore

from fusestore.storage import objects, retries
from fusestore.storage.location import Location
from tests.helpers.hostile_listing import (
    EndlessFolders,
    Listing,
    LongKeys,
    SameKeys,
    SlowListing,
)
from tests.helpers.limits import SECONDS, refused
from tests.helpers.range_server import RangeServer

KEYS = st.sets(
    st.lists(st.sampled_from(["a", "a0", "a-", "b", "é", "\U0001f600", "~", "A"]), min_size=1,
             max_size=4).map("/".join), max_size=25,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(KEYS, st.sampled_from(["", "a", "a/b", "a0"]), st.integers(1, 4))
def test_names_are_those_of_a_listing_by_the_storage(keys, folder, page):
    store = MemoryStore()
    for key in keys:
        obstore.put(store, key, b"x")
    whole = obstore.list_with_delimiter(store, folder or None)
    paths = [*whole["common_prefixes"], *(entry["path"] for entry in whole["objects"])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "_PAGE", page)
        patch.setattr(objects, "_TAKEN", page)
        found = objects.names_below(store, folder, "s3://bucket")
    assert found == sorted({path.rsplit("/", 1)[-1] for path in paths})


def test_a_large_folder_is_skipped(monkeypatch):
    """Each page that ends in a folder is followed by what comes after that folder."""
    store = MemoryStore()
    for key in [f"caches/{name}/{number}" for name in "abc" for number in range(20)]:
        obstore.put(store, key, b"x")
    asked = []
    list_objects = obstore.list
    monkeypatch.setattr(objects, "_PAGE", 5)
    monkeypatch.setattr(objects, "_TAKEN", 5)
    monkeypatch.setattr(
        obstore, "list", lambda *a, **k: asked.append(k["offset"]) or list_objects(*a, **k)
    )
    assert objects.names_below(store, "caches", "s3://bucket") == ["a", "b", "c"]
    assert len(asked) == 4


@pytest.fixture
def no_credentials(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setattr(retries, "FIRST_WAIT_S", 0.01)


def at(server):
    return Location.parse("s3://bucket/x", {"endpoint_url": server.url})


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (Listing, "more than 100,000 names"),
        (EndlessFolders, "more than 100,000 names"),
        (LongKeys, "a name of 1,048,5.. characters"),
    ],
)
def test_names_of_a_hostile_server(tmp_path, no_credentials, handler, says):
    with RangeServer(tmp_path, handler) as server:
        refused(at(server).list, says)


def test_files_of_a_hostile_server(tmp_path, no_credentials, monkeypatch):
    """Two million take 700 MB, so the limit is lower here."""
    monkeypatch.setattr(objects, "MOST_FILES", 50_000)
    for handler, says in (
        (Listing, "more than 50,000 files"),
        (LongKeys, "a name of"),
        (SameKeys, "the same names again"),
    ):
        with RangeServer(tmp_path, handler) as server:
            refused(at(server).listed, says)


def test_a_listing_that_comes_slowly_is_given_up(tmp_path, no_credentials, monkeypatch):
    monkeypatch.setattr(objects, "PAGE_S", 0.3)
    with RangeServer(tmp_path, SlowListing) as server:
        for attack in (at(server).list, at(server).listed):
            begin = time.monotonic()
            refused(attack, r"no answer within 0\.3 seconds")
            assert time.monotonic() - begin < 2 * SECONDS
