"""No output shows a password, a signature or a storage option; names direct no terminal.

Faults 13, 19, 21 (redirects) and 25 of the trial, and their kind.
"""

import json
import logging
import pickle
import traceback
from typing import Any

import pytest

import fusestore as fs
from fusestore.data import StreamingFusedDataset
from fusestore.data.dataset import open_fused
from fusestore.data.shard_cache.job import FetchJob
from fusestore.data.shard_maker import ShardMaker
from fusestore.errors import FusestoreError, InvalidInputError
from fusestore.storage import object_client
from fusestore.storage import retries as failures
from fusestore.storage.location import Location
from fusestore.storage.retries import storage_errors
from fusestore.storage.shown import hidden, plain, plain_json, remember_secrets, shown
from fusestore.store.layout import Store
from fusestore.workflows.fusion_config import FusionConfig
from tests.helpers.range_server import RangeHandler, RangeServer
from tests.helpers.slow_rest import first

SECRETS = ("Pa55word-of-me", "S1gnature-of-mine", "Secr3t-key-of-mine", "T0ken-of-the-session",
           "H3ader-of-mine", "ACCESSKEY1234567")  # fmt: skip
USER, SIGNATURE, KEY, TOKEN, HEADER, ACCESS = SECRETS


def told(*texts):
    """The secrets that the texts show."""
    return [secret for secret in SECRETS for text in texts if secret in text]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(failures, "FIRST_WAIT_S", 0.002)
    monkeypatch.setattr(object_client, "RETRIES", 0)
    monkeypatch.setattr(object_client, "_CLIENTS", {})


@pytest.fixture
def site(store):
    with RangeServer(store) as server:
        yield server


def with_secrets(url, path=""):
    host = url.removeprefix("http://")
    return f"http://me:{USER}@{host}/{path}?X-Amz-Signature={SIGNATURE}&x=1"


HTTP = [
    ["ls", "--store", "{url}"],
    ["pull", "cache/none", "--from", "{url}", "--to", "{tmp}"],
    ["run", "{url}"],
    ["verify", "--store", "{url}"],
    ["show", "cache/none", "--store", "{url}"],
    ["push", "cache/none", "--from", "{url}", "--to", "{tmp}"],
    ["corpus", "c", "{url}", "--store", "{tmp}"],
    ["rm", "cache/none", "--store", "{url}"],
    ["gc", "--store", "{url}"],
]

S3_OPTIONS = [f"key={ACCESS}", f"secret={KEY}", f"token={TOKEN}",
              f"endpoint_url=http://me:{USER}@127.0.0.1:9/", "read_timeout=nonsense"]  # fmt: skip


@pytest.mark.parametrize("debug", first(1, [["--debug"], []]))
@pytest.mark.parametrize("line", first(3, HTTP), ids=str)
def test_no_command_shows_what_a_url_holds(command, site, tmp_path, line, debug):
    url = with_secrets(site.url, "missing")
    outcome = command(*debug, *(each.format(url=url, tmp=tmp_path / "t") for each in line))
    assert outcome.code in (1, 2), outcome.out
    assert told(outcome.out, outcome.err) == []
    assert "defect" not in outcome.err
    if debug and outcome.code == 1:
        assert "Traceback" in outcome.err


@pytest.mark.parametrize("debug", first(1, [["--debug"], []]))
@pytest.mark.parametrize("number", first(2, [4, 5, 1, 2, 3]))
def test_no_command_shows_what_an_option_holds(command, s3_endpoint, monkeypatch, number, debug):
    """A wrong one, one without =, one that no storage has, and servers that refuse."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    pairs = [each for pair in S3_OPTIONS[:number] for each in ("--storage-option", pair)]
    for more in ([], ["--storage-option", SECRETS[2]], ["--storage-option", f"sekret={KEY}"]):
        outcome = command(*debug, "ls", "--store", "s3://no-such-bucket/x", *pairs, *more)
        assert outcome.code in (1, 2)
        assert told(outcome.out, outcome.err) == []
        assert "defect" not in outcome.err


def test_an_option_that_a_filesystem_does_not_know_is_wrong_usage(command, tmp_path):
    """Fault 25: a TypeError of the filesystem, called a defect of fusestore."""
    for url in ("memory://x", "ftp://127.0.0.1/x", "s3://bucket/x", "http://127.0.0.1/x"):
        outcome = command("ls", "--store", url, "--storage-option", f"no_such_option={KEY}")
        assert outcome.code == 2
        assert "no_such_option" in outcome.err
        assert told(outcome.err) == []


def whole_traceback(error):
    return "".join(traceback.format_exception(error))


def test_errors_of_python_show_none_with_their_causes(site):
    url = with_secrets(site.url, "fused/missing")
    for call in (
        lambda: StreamingFusedDataset(url),
        lambda: open_fused(with_secrets(site.url), "missing"),
        lambda: Location.parse(url).list(),
        lambda: Location.parse(url).path,
        lambda: Location.parse(f"ftp://me:{USER}@127.0.0.1:9/x").exists(),
    ):
        with pytest.raises(FusestoreError) as caught:
            call()
        assert told(whole_traceback(caught.value)) == []


@pytest.mark.parametrize("kind", [OSError, PermissionError, FileNotFoundError])
def test_what_a_library_says_is_cleaned(kind):
    """botocore, aiohttp and httpx put the whole URL into their errors, and into the causes."""
    location = Location.parse(f"ftp://me:{USER}@host/x", None)
    remember_secrets("", [("secret", KEY), ("headers", json.dumps({"X-Api-Key": HEADER}))])
    cause = RuntimeError(f"GET https://me:{USER}@host/x?X-Amz-Signature={SIGNATURE} {HEADER}")
    with pytest.raises(FusestoreError) as caught, storage_errors(location):
        raise kind(7, f"refused {KEY}") from cause
    assert told(whole_traceback(caught.value)) == []
    assert getattr(caught.value.__cause__, "errno", None) == 7


def test_no_representation_shows_one(tmp_path):
    options = {"key": ACCESS, "secret": KEY, "token": TOKEN}
    location = Location.parse("s3://bucket/x", options)
    pairs = location.storage_options
    url = with_secrets("http://host", "store")
    web = Location.parse(url, {"headers": {"X-Api-Key": HEADER}})
    make: Any = FusionConfig.model_construct
    config = make(store=url, storage_options=options)
    objects = [
        location, web, Store(location), Store(web), fs.open_store(url), location / "a",
        FetchJob(url, pairs, "root", "d", 1, None), ShardMaker(url, pairs, "folder"), config,
    ]  # fmt: skip
    assert told(*map(repr, objects), *map(str, objects[:4])) == []
    assert "host/store" in repr(web)
    assert "secret=***" in repr(location)
    # Workers need them.
    assert pickle.loads(pickle.dumps(location)).storage_options == pairs  # noqa: S301


def test_nothing_is_logged(site, caplog):
    caplog.set_level(logging.DEBUG)
    with pytest.raises(FusestoreError):
        StreamingFusedDataset(with_secrets(site.url, "fused/missing"))
    assert told(caplog.text) == []


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://me:pw@host:1/a?b=c", "https://host:1/a"),
        ("s3://bucket/a b", "s3://bucket/a b"),
        ("ftp://me:pw@host/a", "ftp://***@host/a"),
        ("simplecache::ftp://me:p%40w@host/a", "simplecache::ftp://***@host/a"),
        ("zip://a.csv::https://me:pw@host/x.zip?sig=abc", "zip://a.csv::https://***@host/x.zip?sig=***"),
        ("abfs://container@account/x?sig=abc&y", "abfs://container@account/x?sig=***&y"),
        ("hf://datasets/me/x@main/y", "hf://datasets/me/x@main/y"),
        ("/a/b?c=d", "/a/b?c=d"),
        ("http://[broken", "http://***"),
    ],
)  # fmt: skip
def test_addresses_keep_all_that_is_no_secret(url, expected):
    assert shown(url) == expected
    assert hidden(f"at {shown(url)} it is") == f"at {shown(url)} it is"


# Fault 21: a server that redirects elsewhere.


def test_a_redirect_takes_no_authorization_to_another_server(store, tmp_path):
    """Documented: redirects are followed to any host. The Authorization header is not."""
    seen = []

    class Elsewhere(RangeHandler):
        def _answer(self, send):
            seen.append(dict(self.headers))
            super()._answer(send)

    class Redirecting(RangeHandler):
        def _answer(self, send):
            elsewhere = other.url.replace("127.0.0.1", "localhost")
            self._reply(302, b"", send, ("Location", f"{elsewhere}{self.path}"))

    with RangeServer(store, Elsewhere) as other, RangeServer(store, Redirecting) as first:
        url = first.url.replace("http://", f"http://me:{USER}@")
        options = {"headers": {"Authorization": f"Bearer {HEADER}", "Cookie": TOKEN}}
        for location in (Location.parse(f"{first.url}/fused", options), Location.parse(url)):
            data = (location / "fused" / "mince" / "manifest.json" if location.name != "fused"
                    else location / "mince" / "manifest.json").read_bytes()  # fmt: skip
            assert data == (store / "fused/mince/manifest.json").read_bytes()
    assert seen
    assert told(*map(str, seen)) == []


# Fault 19: escape sequences of names reached the terminal.

ESCAPES = "\x1b]0;title\x07\x1b[31mred\x9b2J\u202egnp\u2066\x7f\r\b"
DANGEROUS = "\x1b\x07\x9b\u202e\u2066\x7f\r\b"


def test_names_of_a_store_direct_no_terminal(command, store):
    for folder in ("caches", "fused", "corpora"):
        (store / folder / f"x{ESCAPES}").mkdir()
    lines = [["ls"], ["tree"], ["du"], ["verify", "--quick"], ["show", "cache/x"],
             ["show", f"cache/x{ESCAPES}"], ["gc", "--dry-run"], ["rm", "cache/nothing"],
             ["pull", "--all", "--from", str(store), "--to", str(store) + "2"]]  # fmt: skip
    for line in lines:
        for more in ([], ["--json"]) if line[0] in ("ls", "tree") else ([],):
            outcome = command(*line, *more, *([] if line[0] == "pull" else ["--store", store]))
            printed = outcome.out + outcome.err
            assert not set(DANGEROUS) & set(printed), line
            if more and outcome.code == 0:
                json.loads(outcome.out)
    assert "\\x1b" in command("ls", "--store", store).out


def test_documents_and_settings_of_a_store_direct_no_terminal(command, tmp_path):
    text = tmp_path / "x.jsonl"
    text.write_text(json.dumps({"text": f"word {ESCAPES} word"}) + "\n")
    command.succeeds("corpus", text, "--store", tmp_path / "s", "--name", "c",
                     "--max-length", "none")  # fmt: skip
    outcome = command.succeeds("show", "corpus/c", "--document", "0", "--store", tmp_path / "s")
    assert not set(DANGEROUS) & set(outcome.out)
    as_json = command.succeeds(
        "show", "corpus/c", "--document", "0", "--json", "--store", tmp_path / "s"
    )
    assert not set(DANGEROUS) & set(as_json.out)
    assert f"word {ESCAPES} word" in as_json.json["text"]


def test_escapes_are_seen_and_other_scripts_are_left():
    assert plain("naïve 漢字 👩‍🚀 עברית\ta\nb") == "naïve 漢字 👩‍🚀 עברית\ta\nb"
    assert plain("a\x1b[0m\nb", keep="") == "a\\x1b[0m\\nb"
    assert plain("\u202e\u2028") == "\\u202e\\u2028"
    value = {"a": f"{ESCAPES} 漢\U000e0041"}
    written = plain_json(json.dumps(value, ensure_ascii=False))
    assert json.loads(written) == value
    assert "漢" in written
    assert not set(DANGEROUS) & set(written)
    with pytest.raises(InvalidInputError):
        Location.parse("a\0b")
