"""Manifests: canonical, checked, and refused when they are not what they say."""

import json

import jsonschema
import pytest

from fusestore.errors import (
    AlreadyExistsError,
    CorruptionError,
    FormatVersionError,
    InvalidInputError,
    NotFoundError,
)
from fusestore.storage.location import Location
from fusestore.storage.publish import publish
from fusestore.store import manifest as manifest_module
from fusestore.store.manifest import Manifest
from tests.helpers.resealed_documents import sealed


class Example(Manifest):
    name: str
    score: float = 0.25


@pytest.fixture
def file(tmp_path):
    return Location.parse(tmp_path / "manifest.json")


def test_a_manifest_reads_back(file):
    Example(name="ä").save(file)
    assert Example.load(file) == Example(name="ä")
    assert json.loads(file.read_bytes())["checksum"] == Example(name="ä").digest
    jsonschema.validate(json.loads(file.read_bytes()), Example.model_json_schema())


def test_it_is_written_once(file):
    Example(name="a").save(file)
    Example(name="a").save(file)
    with pytest.raises(AlreadyExistsError):
        Example(name="b").save(file)


def test_every_flipped_bit_is_noticed(file):
    whole = Example(name="x").to_bytes()
    for position in range(len(whole)):
        for bit in range(8):
            data = bytearray(whole)
            data[position] ^= 1 << bit
            with pytest.raises((CorruptionError, InvalidInputError, FormatVersionError)):
                Example.from_bytes(bytes(data), "x")


def test_every_cut_is_noticed(file):
    whole = Example(name="x").to_bytes()
    for length in range(len(whole)):
        with pytest.raises((CorruptionError, InvalidInputError)):
            Example.from_bytes(whole[:length], "x")


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (sealed({"format_version": 999, "name": "x"}), FormatVersionError, "999"),
        (sealed({"format_version": True, "name": "x"}), InvalidInputError, "format_version"),
        (sealed({"format_version": 1, "nam": "x"}), InvalidInputError, "nam"),
        (b"", InvalidInputError, "JSON"),
        (b"[" * 200_000, InvalidInputError, "JSON"),
        (b"[]", InvalidInputError, "format_version"),
        (b"\xff\xfe", InvalidInputError, "JSON"),
        (b'{"format_version": 1, "name": "x"}', CorruptionError, "checksum"),
    ],
)
def test_what_is_no_manifest_is_refused(file, data, error, says):
    publish(file, data)
    with pytest.raises(error, match=says):
        Example.load(file)


def test_a_manifest_of_absurd_size_is_not_parsed(file, monkeypatch):
    monkeypatch.setattr(manifest_module, "MAX_MANIFEST_BYTES", 10)
    publish(file, Example(name="x").to_bytes())
    with pytest.raises(InvalidInputError, match="larger"):
        Example.load(file)


def test_absence_is_named(file):
    with pytest.raises(NotFoundError, match=r"manifest\.json"):
        Example.load(file)
