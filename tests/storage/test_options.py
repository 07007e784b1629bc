"""Storage options: the same typed values from everywhere, and names that are known."""

import pickle
import traceback

import pytest
from fsspec.config import conf
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from fusestore.errors import InvalidInputError
from fusestore.storage import object_client
from fusestore.storage.location import Location
from fusestore.storage.options import HttpOptions, S3Options, options_class
from fusestore.store.layout import Store
from fusestore.workflows.fusion_config import load_config
from tests.helpers.command import Command
from tests.helpers.filled import filled
from tests.helpers.range_server import RangeHandler, RangeServer
from tests.helpers.tiny_job import write_fusion

S3 = "s3://bucket/my.store"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ({"anon": "false"}, {"anon": False}),
        ({"anon": "True"}, {"anon": True}),
        ({"max_concurrency": "4"}, {"max_concurrency": 4}),
        ({"read_timeout": "2.5"}, {"read_timeout": 2.5}),
        ({"client_kwargs": '{"region_name": "x"}'}, {"client_kwargs": {"region_name": "x"}}),
        ({"key": "123", "secret": "1e5"}, {"key": "123", "secret": "1e5"}),
        ({"token": "true"}, {"token": "true"}),
        ({"profile": "null"}, {"profile": None}),
    ],
)
def test_text_is_read_as_the_options_type(text, value):
    assert S3Options.of(text, S3).model_dump(exclude_unset=True) == value
    assert S3Options.of(text, S3) == S3Options.of(value, S3)
    assert Location.parse(S3, text) == Location.parse(S3, value)


TEXTS = st.one_of(st.text(max_size=9), st.sampled_from(["true", "12", "[1]", "x=y", '"x']))
FIELDS = {
    "key": TEXTS,
    "secret": TEXTS,
    "anon": st.booleans(),
    "max_concurrency": st.integers(1, 99),
    "connect_timeout": st.floats(0.001, 1e6),
    "client_kwargs": st.fixed_dictionaries({}, optional={"region_name": TEXTS}),
}


@given(st.fixed_dictionaries({}, optional=FIELDS))
def test_a_location_keeps_the_values(values):
    location = Location.parse(S3, values)
    again = pickle.loads(pickle.dumps(location))  # noqa: S301 - our own bytes
    assert again == location == Location.parse(S3, dict(location.storage_options))
    kept = S3Options.of(dict((again / "x").storage_options), S3)
    assert kept.model_dump(exclude_unset=True) == S3Options.of(values, S3).model_dump(
        exclude_unset=True
    )


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        (S3, {"nonsense": "1"}, r"of s3://: 'nonsense' is not one of them\. They are key, secret"),
        (S3, {"endpoint": "x"}, r"'endpoint' is not.*Did you mean 'endpoint_url'"),
        (S3, {"client_kwargs": '{"regoin_name": "x"}'}, r"client_kwargs: .*mean 'region_name'"),
        (S3, {"anon": "maybe"}, "anon: .*valid boolean"),
        (S3, {"max_concurrency": 0}, "max_concurrency: .*greater than or equal to 1"),
        ("https://host/x", {"header": "{}"}, r"of https://: .*Did you mean 'headers'"),
        ("hf://datasets/me/x", {"tokne": "x"}, r"of hf://: .*mean 'token'.*endpoint, token"),
        ("memory://x", {"max_path": "3"}, r"of memory://: .*Did you mean 'max_paths'"),
        ("memory://x", {"max_paths": object()}, "are text, numbers, true, false and tables"),
    ],
)
def test_a_wrong_option_is_refused_by_name(url, options, message):
    with pytest.raises(InvalidInputError, match=message):
        Location.parse(url, options)


def told(kind, options):
    """What a user sees of the options, or of the error that they are refused with."""
    try:
        return repr(kind.of(options, S3))
    except InvalidInputError as error:
        return "".join(traceback.format_exception(error))


@pytest.mark.parametrize("kind", [S3Options, HttpOptions, options_class("hf://x")])
def test_no_message_shows_a_value(kind):
    for name in kind.model_fields:
        for value in ({"x": ["hush"]}, ["hush"], '{"x": ["hush"]}'):
            assert "hush" not in told(kind, {name: value})
    assert "hush" not in repr(Location.parse(S3, {"secret": "hush"}))


def test_a_filesystem_of_fsspec_receives_typed_values(monkeypatch):
    received = {}
    create = MemoryFileSystem.__init__

    def record(self, *arguments, **options):
        received.update(options)
        create(self, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "__init__", record)
    options = {"use_listings_cache": "false", "max_paths": "7", "skip_instance_cache": "true"}
    assert not (Location.parse("memory://typed-options", options) / "x").exists()
    assert received == {"use_listings_cache": False, "max_paths": 7}


class RecordingHandler(RangeHandler):
    def _answer(self, send):
        self.server_of.received = self.headers
        super()._answer(send)


def test_headers_go_with_every_request_and_to_no_other_server(tmp_path):
    (tmp_path / "x").write_bytes(b"content")
    with RangeServer(tmp_path, RecordingHandler) as site:
        file = Location.parse(f"{site.url}/x", {"headers": '{"Authorization": "Bearer 1"}'})
        assert filled(file, 0, 7) == b"content"
        assert site.received["Authorization"] == "Bearer 1"
        assert file.shares_storage(f"{site.url}/y")
        assert not file.shares_storage("http://elsewhere/x")
    assert Location.parse(S3).shares_storage("s3://other/x")
    assert not Location.parse(S3).shares_storage("memory://x")


def test_the_environment_gives_the_same_options(monkeypatch):
    """fsspec reads FSSPEC_S3_ANON=false and its like into `conf` when it is imported."""
    monkeypatch.setitem(conf, "s3", {"anon": "false", "region": "here", "default_block_size": 5})
    options = object_client.s3_options(S3, (("region", "there"),))
    assert options.model_dump(exclude_unset=True) == {"anon": False, "region": "there"}
    monkeypatch.setitem(conf, "s3", {"anon": "maybe"})
    with pytest.raises(InvalidInputError, match="anon: "):
        object_client.s3_options(S3, ())


def test_a_fusion_toml_gives_the_same_options(tmp_path):
    file = write_fusion(tmp_path, tmp_path, S3)
    plain = file.read_text()

    def config(table, **options):
        file.write_text(f"storage_options = {table}\n{plain}")
        return load_config(Location.parse(file), **options)

    table = '{ anon = false, max_concurrency = 4, client_kwargs = { region_name = "x" } }'
    expected = {"anon": False, "max_concurrency": 4, "client_kwargs": {"region_name": "x"}}
    assert config(table).storage_options == expected
    changed = config(table, storage_options={"max_concurrency": "5"})
    assert Store.open(changed.store, changed.storage_options).location == Location.parse(
        S3, {**expected, "max_concurrency": 5}
    )
    assert config(table, store=str(tmp_path)).storage_options == {}
    with pytest.raises(InvalidInputError, match="Did you mean 'anon'"):
        config("{ anno = false }")


def test_the_command_line_gives_the_same_options(capsys, monkeypatch, tmp_path):
    command = Command(capsys, monkeypatch)
    opened = []
    monkeypatch.setattr(
        Store, "open", lambda *given: opened.append(Location.parse(*given)) or 1 / 0
    )
    typed = ["anon=false", "max_concurrency=4", 'client_kwargs={"region_name":"x"}']
    command("ls", "-s", S3, *(f"--storage-option={pair}" for pair in typed))
    values = {"anon": False, "max_concurrency": 4, "client_kwargs": {"region_name": "x"}}
    assert opened == [Location.parse(S3, values)]


@pytest.mark.parametrize(
    ("store", "options", "message"),
    [
        (S3, ["nonsense=1"], "'nonsense' is not one of them"),
        (S3, ["anon=maybe"], "valid boolean"),
        (S3, ["secret:hush"], "is not KEY=VALUE"),
        (S3, ["anon=true", "anon=false"], "'anon' is given twice"),
        ("my.store", ["anon=true"], "my.store is a local folder"),
    ],
)
def test_a_wrong_option_is_wrong_usage(capsys, monkeypatch, store, options, message):
    command = Command(capsys, monkeypatch)
    outcome = command("ls", "-s", store, *(f"--storage-option={pair}" for pair in options))
    assert outcome.code == 2
    assert message in " ".join(outcome.message.split())
    assert "hush" not in outcome.err
