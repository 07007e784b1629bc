"""Inputs over HTTP, from object storage and from the Hub."""

import functools
import gzip
import io
import json
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import huggingface_hub
import polars as pl
import pytest

from fusestore.corpus.ingest import read_documents
from fusestore.corpus.run import build_corpus
from fusestore.corpus.settings import CorpusSettings
from fusestore.errors import AccessDeniedError, InvalidInputError, NotFoundError
from fusestore.storage.location import Location
from fusestore.storage.publish import publish
from fusestore.store.layout import Store
from tests.helpers.hub_server import HubServer


class PlainHandler(SimpleHTTPRequestHandler):
    """Python's own server, which understands no ranges; files below /signed need a signature."""

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        # A signature is for one method.
        self.send_error(403)

    def do_GET(self):
        if self.path.startswith("/signed/") and urlsplit(self.path).query != "sig=a/b%3D/":
            return self.send_error(403)
        if self.path.startswith("/endless/"):
            self.send_response(200)
            self.end_headers()
            return self.wfile.write(b"text")
        return super().do_GET()


@pytest.fixture
def site(tmp_path):
    """A folder, and the URL where it is served."""
    folder = tmp_path / "served"
    (folder / "signed").mkdir(parents=True)
    with ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(PlainHandler, directory=str(folder))
    ) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_every_format_over_http(site):
    folder, url = site
    frame = pl.DataFrame({"text": ["a", "b"]})
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in frame.iter_rows(named=True))
    (folder / "a.jsonl").write_bytes(lines)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (folder / "c.csv").write_text(frame.write_csv())
    frame.write_parquet(folder / "d.parquet")
    frame.write_ipc_stream(folder / "e.arrow")
    for name in ("a.jsonl", "b.jsonl.gz", "c.csv", "d.parquet", "e.arrow"):
        read = read_documents(f"{url}/{name}")
        assert read["text"].to_list() == ["a", "b"]
        assert read["source"][1] == name.removesuffix(".gz") + "#1"
    (folder / "f g [1].TXT").write_text("text")
    for name in ("f g [1].TXT", "f%20g%20%5B1%5D.TXT"):
        assert read_documents(f"{url}/{name}").rows() == [("f g [1].TXT", "text", "train", None)]


def test_a_signature_is_sent_and_neither_kept_nor_shown(site, tmp_path):
    folder, url = site
    (folder / "signed/a.jsonl").write_text('{"text": "a"}\n')
    signed = f"{url}/signed/a.jsonl?sig=a/b%3D/"
    store = Store.open(tmp_path / "store")
    settings = CorpusSettings(max_length=None)
    corpus = build_corpus(store, "corpus", signed, settings).artifact
    assert corpus.table()["source"].to_list() == ["a.jsonl#0"]
    kept = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*.json"))
    assert b"sig" not in kept
    assert b"127.0.0.1" not in kept
    for wrong, error in (
        (signed[:-1], AccessDeniedError),
        (signed.replace("a.jsonl", "b.jsonl"), NotFoundError),
        (signed.replace("a.jsonl", "a.pdf"), InvalidInputError),
    ):
        with pytest.raises(error) as raised:
            read_documents(wrong)
        assert url in str(raised.value)
        assert "sig=" not in str(raised.value)
    (folder / "signed/a.jsonl").write_bytes(b"")
    with pytest.raises(InvalidInputError, match="is empty") as raised:
        read_documents(signed)
    assert "sig=" not in str(raised.value)


def test_what_http_cannot_do_is_said(site):
    folder, url = site
    with pytest.raises(InvalidInputError, match="HTTP lists no folders"):
        read_documents(f"{url}/folder/")
    with pytest.raises(InvalidInputError, match="does not say how long the file is"):
        read_documents(f"{url}/endless/a.txt")
    with pytest.raises(NotFoundError, match=r"absent\.txt does not exist"):
        read_documents(f"{url}/absent.txt")
    (folder / "a.txt").write_text("a")
    with pytest.raises(InvalidInputError, match=r"two slashes in a row.*Write http://127"):
        read_documents(f"{url}//a.txt")


def test_options_of_the_store_are_not_those_of_every_input(
    site, s3_url, s3_endpoint, monkeypatch, tmp_path
):
    folder, url = site
    (folder / "a.txt").write_text("web")
    publish(Location.parse(f"{s3_url}/in/b.txt"), b"bucket")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    options = {"endpoint_url": s3_endpoint}
    inputs = [f"{url}/a.txt", f"{s3_url}/in"]
    settings = CorpusSettings(max_length=None)
    # Those of a bucket, from a store there; given ones, from a local store, which has none.
    remote = Store.open(f"{s3_url}/store", options)
    local = Store.open(tmp_path / "store")
    corpus = build_corpus(remote, "corpus", inputs, settings).artifact
    assert corpus.table()["source"].to_list() == ["a.txt", "b.txt"]
    corpus = build_corpus(local, "corpus", inputs, settings, storage_options=options).artifact
    assert corpus.table()["text"].to_list() == ["web", "bucket"]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    # Other tests may not ask the Hub.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    repository = tmp_path / "repository"
    frame = pl.DataFrame({"text": ["a", "b"]})
    data = io.BytesIO()
    frame.write_parquet(data)
    publish(Location.parse(repository / "data/train-00000-of-00001.parquet"), data.getvalue())
    publish(Location.parse(repository / "data/c.jsonl.gz"), gzip.compress(b'{"text": "c"}'))
    publish(Location.parse(repository / "README.md"), b"card")
    publish(Location.parse(repository / "dataset_infos.json"), b"{}")
    publish(Location.parse(repository / ".gitattributes"), b"")
    with HubServer(repository) as server:
        yield server


def test_a_dataset_of_the_hub(hub):
    lines = []
    everything = read_documents(hub.hf, storage_options=hub.options, report=lines.append)
    assert everything.select("source", "text").rows() == [
        ("data/c.jsonl#0", "c"),
        ("data/train-00000-of-00001.parquet#0", "a"),
        ("data/train-00000-of-00001.parquet#1", "b"),
    ]
    (line,) = lines
    assert sorted(line.rstrip(".").split(": ")[1].split(", ")) == ["1 dataset card", "1 hidden"]
    for inputs in (
        "data/train-00000-of-00001.parquet",
        "data/*.parquet",
        "**/*.parquet",
        "data/train-0000?-of-*",
    ):
        read = read_documents(f"{hub.hf}/{inputs}", storage_options=hub.options)
        assert read["text"].to_list() == ["a", "b"]
    with pytest.raises(NotFoundError):
        read_documents(f"{hub.hf}/absent.parquet", storage_options=hub.options)
    at_revision = read_documents(f"{hub.hf}@main/data", storage_options=hub.options)
    assert at_revision["source"].to_list()[0] == "c.jsonl#0"
