"""Ranges over HTTP: what arrives, and what servers answer instead."""

import contextlib
import random

import pytest

from fusestore.data import StreamingFusedDataset, open_fused
from fusestore.errors import AccessDeniedError, InvalidInputError, NotFoundError, StorageError
from fusestore.storage import object_client, objects
from fusestore.storage import retries as failures
from fusestore.storage.location import Location
from fusestore.storage.publish import publish
from fusestore.storage.shown import shown
from tests.helpers.filled import filled
from tests.helpers.range_server import RangeHandler, RangeServer
from tests.helpers.whole_dataset import write_dataset

DATA = random.Random(5).randbytes(700_001)  # noqa: S311 - any bytes


class OddHandler(RangeHandler):
    """Answers as the server's `plan` says, as long as there is one; then as it should."""

    def _answer(self, send):
        plan = self.server_of.plan
        answer = plan.pop(0) if plan else None
        if isinstance(answer, int):
            return self._reply(answer, b"no", send)
        if answer == "redirect":
            return self._reply(302, b"", send, ("Location", f"{self.server_of.url}/x"))
        if answer == "whole":
            return self._reply(200, DATA, send)
        if answer == "elsewhere":
            where = ("Content-Range", f"bytes 7-16/{len(DATA)}")
            return self._reply(206, DATA[7:17], send, where)
        if answer == "short":
            where = ("Content-Range", f"bytes 100-199/{len(DATA)}")
            return self._reply(206, DATA[100:150], send, where)
        if answer == "cut":
            self.send_response(206)
            self.send_header("Content-Range", f"bytes 100-199/{len(DATA)}")
            self.send_header("Content-Length", "100")
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(DATA[100:150])
            self.close_connection = True
            return None
        return super()._answer(send)

    def _answer_file(self, name, send):
        if (asked := self.headers.get("Range")) is not None:
            start = int(asked.removeprefix("bytes=").split("-")[0])
            if name == "x" and start >= len(DATA):
                return self._reply(416, b"", send)
        return super()._answer_file(name, send)


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setattr(failures, "FIRST_WAIT_S", 0.002)
    monkeypatch.setattr(object_client, "RETRIES", 0)
    monkeypatch.setattr(object_client, "_CLIENTS", {})
    (tmp_path / "x").write_bytes(DATA)
    with RangeServer(tmp_path, OddHandler) as server:
        server.plan = []
        yield server


def test_any_range(site):
    choice = random.Random(6)  # noqa: S311 - repeatable
    spans = [(0, len(DATA)), (0, 1), (len(DATA) - 1, 1), (len(DATA) - 5, 50), (len(DATA), 9)]
    spans += [(choice.randrange(len(DATA)), choice.randrange(1, 400_000)) for _ in range(20)]
    for start, size in spans:
        assert filled(Location.parse(f"{site.url}/x"), start, size) == DATA[start : start + size]
    asked = [wanted for _, wanted in site.requests]
    # Beyond the end nothing is sent; all else is asked for once, exactly.
    assert asked == [
        f"bytes={start}-{start + size - 1}" for start, size in spans if start < 700_001
    ]


@pytest.mark.parametrize("fault", [500, 503, 429, "elsewhere", "short", "cut"])
def test_what_fails_in_passing_is_asked_for_again(site, fault):
    site.plan += [fault, fault]
    assert filled(Location.parse(f"{site.url}/x"), 100, 100) == DATA[100:200]
    site.plan += [fault] * failures.ATTEMPTS
    with pytest.raises(StorageError, match=f"{site.url}/x"):
        filled(Location.parse(f"{site.url}/x"), 100, 100)
    assert not site.plan


def test_redirections_are_followed(site):
    site.plan += ["redirect"]
    assert filled(Location.parse(f"{site.url}/elsewhere"), 100, 100) == DATA[100:200]


def test_a_server_without_ranges_serves_small_files_only(site):
    site.plan += ["whole"]
    assert filled(Location.parse(f"{site.url}/x"), 0, 100) == DATA[:100]
    site.plan += ["whole"] * failures.ATTEMPTS
    with pytest.raises(StorageError, match="does not understand ranges"):
        filled(Location.parse(f"{site.url}/x"), 100, 100)


@pytest.mark.parametrize(
    ("status", "error"), [(404, NotFoundError), (410, NotFoundError), (403, AccessDeniedError)]
)
def test_refusals_are_not_repeated(site, status, error):
    site.plan += [status]
    with pytest.raises(error, match=f"{site.url}/x"):
        filled(Location.parse(f"{site.url}/x"), 0, 10)
    assert not site.plan


def test_a_server_that_is_gone(site):
    site.stop()
    with pytest.raises(StorageError, match="could not be reached"):
        filled(Location.parse(f"{site.url}/x"), 0, 10)


def test_a_whole_file_is_asked_for_without_a_range(site):
    file = Location.parse(f"{site.url}/x")
    assert filled(file, 0, len(DATA), whole=True) == DATA
    # It may have grown, or shrunk, since somebody said how large it is.
    assert filled(file, 0, 1_000, whole=True) == DATA[:1_000]
    assert filled(file, 0, len(DATA) + 9, whole=True) == DATA
    assert [asked for _, asked in site.requests] == [None] * 3


def test_connections_are_used_again(site):
    opened = []
    handler = site._server.RequestHandlerClass
    handler.setup = lambda self: (opened.append(1), super(handler, self).setup())
    for number in range(10):
        assert filled(Location.parse(f"{site.url}/x"), 0, len(DATA), whole=number < 5) == DATA
    # A connection returns to the pool a moment after its answer, in a thread of the client.
    assert len(opened) < 5


def test_options_of_other_storages_are_refused(site):
    with pytest.raises(InvalidInputError, match="'block_size' is not one of them"):
        Location.parse(f"{site.url}/x", {"block_size": "100"})


def test_a_password_in_the_url_is_sent_and_not_told(site):
    url = site.url.replace("//", "//me:secret@")
    assert filled(Location.parse(f"{url}/x"), 3, 10) == DATA[3:13]
    assert shown(f"{url}/x?sig=1") == f"{site.url}/x"
    site.plan += [500] * failures.ATTEMPTS
    with pytest.raises(StorageError) as raised:
        objects.size(f"{url}/x", ())
    assert "secret" not in str(raised.value)


def test_files_are_read_and_nothing_else(site):
    file = Location.parse(f"{site.url}/x")
    assert file.exists()
    assert not Location.parse(f"{site.url}/y").exists()
    assert file.size() == len(DATA)
    assert file.read_bytes() == DATA
    assert file.read_range(5, 9) == DATA[5:9]
    for verb in (file.parent.sizes, file.delete, lambda: publish(file, b"")):
        with pytest.raises(InvalidInputError, match="HTTP serves files for reading only"):
            verb()


class SignedHandler(RangeHandler):
    """Serves what is asked for with the right signature."""

    def _answer(self, send):
        name, _, query = self.path.lstrip("/").partition("?")
        if query != "sig=a/b%3D&v=1":
            return self._reply(403, b"no", send)
        return self._answer_file(name, send)


def test_a_signature_stands_behind_every_path(tmp_path):
    store = tmp_path / "site/store"
    write_dataset(store / "fused/x", num_tokens=2_000, window_length=100, rows_per_shard=500)
    with RangeServer(tmp_path / "site", SignedHandler) as site:
        query = "?sig=a/b%3D&v=1"
        folder = Location.parse(f"{site.url}/store/fused/x/{query}")
        assert folder.url == f"{site.url}/store/fused/x{query}"
        assert str(folder) == f"{site.url}/store/fused/x"
        assert (folder.name, folder.parent.name) == ("x", "fused")
        assert (folder.parent / "x") == folder
        assert (folder / "manifest.json").read_bytes() == (
            store / "fused/x/manifest.json"
        ).read_bytes()
        dataset = StreamingFusedDataset(folder.url, cache_dir=tmp_path / "cache")
        assert len(list(dataset)) == 20
        copied = open_fused(f"{site.url}/store{query}", "x", cache_dir=tmp_path / "copies")
        assert len(copied) == 20
        with pytest.raises(AccessDeniedError) as raised:
            StreamingFusedDataset(f"{site.url}/store/fused/x?sig=other")
        assert "other" not in str(raised.value)
    # A question mark is a character of other names.
    assert (Location("s3://b/x?y") / "z").url == "s3://b/x?y/z"


@pytest.mark.parametrize("url", ["s3://b//x", "s3://b/x//y", "http://h//x?q=//"])
def test_a_folder_without_a_name_is_refused(url):
    with pytest.raises(InvalidInputError, match="two slashes in a row") as raised:
        Location.parse(url)
    protocol, _, rest = url.partition("?")[0].partition("://")
    assert f"Write {protocol}://{rest.replace('//', '/')}." in str(raised.value)


def test_a_file_is_copied_here_in_one_request(site, tmp_path):
    for fault in (None, 503, "whole"):
        site.plan += [fault] if fault else []
        Location.parse(f"{site.url}/x").download(tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == DATA
    assert [asked for _, asked in site.requests] == [None] * 2
    with pytest.raises(NotFoundError):
        Location.parse(f"{site.url}/absent").download(tmp_path / "copy")
    Location.parse(tmp_path / "x").download(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA
