"""Manifests: small JSON documents that describe an artifact, and their digests.

A manifest is frozen, validated where it is made, and written once. Its JSON is canonical (sorted
keys, two-space indent, newline at the end), so the same content is the same bytes, and `digest`
identifies it. In a file the key `checksum` holds that digest, computed without the key itself: a
damaged manifest is recognized by itself.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo

from fusestore.errors import (
    CorruptionError,
    FormatVersionError,
    IncompatibleError,
    InvalidInputError,
    NotFoundError,
)
from fusestore.storage.location import Location
from fusestore.storage.publish import publish_new, sync_folders
from fusestore.store.foreign_json import parse_foreign_json
from fusestore.version import FORMAT_VERSION

MAX_MANIFEST_BYTES = 48 * 2**20
"""A larger manifest is refused before it is parsed. That of a fused dataset has 0.6 kB a shard."""

Count = Annotated[int, Field(ge=0)]
"""How many there are of something: an int64, as every integer that is read from a manifest."""


def canonical_json(value: Mapping[str, Any]) -> bytes:
    """The one JSON form of a value: sorted keys, two-space indent, newline at the end."""
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()


def digest_bytes(data: bytes) -> str:
    """SHA-256 of the bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


class Frozen(BaseModel):
    """A validated, immutable value object; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def is_stored(info: ValidationInfo) -> bool:
    """Whether the values that a validator sees come from a manifest, not from a person.

    Names that plugins register are checked only when a person gives them: a manifest must be
    readable without the plugins that were used to make its artifact.
    """
    return isinstance(info.context, Mapping) and bool(info.context.get(_STORED))


_STORED = "stored"


def _add_checksum_to_schema(schema: dict[str, Any]) -> None:
    schema["properties"]["checksum"] = {
        "description": "SHA-256 of this document's canonical JSON without this key.",
        "pattern": "^[0-9a-f]{64}$",
        "title": "Checksum",
        "type": "string",
    }


class Manifest(Frozen):
    """Base of all manifests: a format version, canonical bytes and a digest."""

    model_config = ConfigDict(json_schema_extra=_add_checksum_to_schema)

    format_version: int = FORMAT_VERSION

    def to_bytes(self) -> bytes:
        """The file: canonical JSON with the key `checksum`."""
        return canonical_json({**self.model_dump(mode="json"), "checksum": self.digest})

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON without `checksum`, as hexadecimal."""
        return digest_bytes(canonical_json(self.model_dump(mode="json")))

    def save(self, location: Location) -> None:
        """Write the document, create-only: see `publish_new`.

        A `manifest.json` says that its folder is whole, so every name in it is made durable first.
        """
        if location.name == "manifest.json":
            sync_folders(location.parent)
        publish_new(location, self.to_bytes())

    @classmethod
    def load(cls, location: Location) -> Self:
        """Read and validate a manifest.

        Raises:
            NotFoundError: no such file.
            FormatVersionError: written by a newer version of the format.
            CorruptionError: the content does not match its checksum.
            InvalidInputError: not a manifest of this kind.
        """
        return cls.from_bytes(location.read_prefix(MAX_MANIFEST_BYTES + 1), str(location))

    @classmethod
    def load_if_sound(cls, location: Location) -> Self | None:
        """Read a manifest; None if it is missing or damaged.

        Raises:
            AccessDeniedError, StorageError: the storage failed.
        """
        try:
            return cls.load(location)
        except (NotFoundError, CorruptionError, FormatVersionError, InvalidInputError):
            return None

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Self:
        """Validate the bytes of a manifest file; `name` is what messages call it. See `load`."""
        try:
            return cls.model_validate(manifest_content(data, name), context={_STORED: True})
        except ValidationError as error:
            problem = str(error)[:_MESSAGE]
            raise InvalidInputError(f"{name} is not a valid {cls.__name__}: {problem}") from error


def check_repaired(before: Manifest | None, after: Manifest, location: Location) -> None:
    """Check that an artifact that was made again is the same, if its old manifest was sound.

    Raises:
        IncompatibleError: it differs; the new artifact is sound by itself.
    """
    if before is not None and before != after:
        raise IncompatibleError(
            f"{location} was made again and is sound, but its bytes differ from the old ones: this "
            "version of fusestore or of its libraries writes it in another way. Make the artifacts "
            "that were made from it again."
        )


def manifest_content(data: bytes, name: str) -> dict[str, Any]:
    """The content of a manifest file of any kind, with its `checksum` checked and removed.

    For readers that must not import the kind's own class; errors as for `Manifest.load`.
    """
    parsed = parse_foreign_json(data, name, MAX_MANIFEST_BYTES)
    content: dict[str, Any] = parsed if isinstance(parsed, dict) else {}
    version = content.get("format_version")
    if type(version) is not int:
        raise InvalidInputError(f"{name} is not a fusestore manifest: no format_version.")
    if version > FORMAT_VERSION:
        raise FormatVersionError(
            f"{name} has store format {version}; this fusestore reads up to "
            f"{FORMAT_VERSION}. Upgrade with `pip install -U fusestore`."
        )
    checksum = content.pop("checksum", None)
    # Changes of white space and the like leave the content as it is.
    if not isinstance(checksum, str) or not _is_canonical(content, checksum, data):
        raise CorruptionError(
            f"{name} does not match its checksum: it was damaged or edited. "
            "Run `fusestore verify`, which lists the damage and how to repair it."
        )
    return content


def _is_canonical(content: Mapping[str, Any], checksum: str, data: bytes) -> bool:
    """Whether the bytes are the canonical JSON of the content and its checksum.

    The checksum is a line of its own, so the bytes without it are what it was computed from.
    """
    line = f'  "checksum": "{checksum}",\n'.encode("utf-8", "surrogatepass")
    before, found, after = data.partition(b"{\n" + line)
    if not found:
        before, found, after = data.partition(b",\n" + line)
    state = hashlib.sha256(before + found[:2])
    state.update(after)
    if not found or state.hexdigest() != checksum:
        return False
    return _equals(content, before + found[:2] + after)


def _equals(content: Mapping[str, Any], data: bytes) -> bool:
    """Whether the bytes are the canonical JSON of the content, compared piece by piece.

    `canonical_json` of a large document would take several times its size.
    """
    pieces = _ENCODER.iterencode(content)
    position = 0
    while batch := "".join(itertools.islice(pieces, _PIECES)):
        try:
            expected = batch.encode()
        except UnicodeEncodeError:
            # Half of a surrogate pair is no text, and in no document of ours.
            return False
        if data[position : position + len(expected)] != expected:
            return False
        position += len(expected)
    return data[position:] == b"\n"


_ENCODER = json.JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False)

_PIECES = 10_000

_MESSAGE = 2_000
"""Characters of a message about a document: a hostile one has a problem with each of its values."""
