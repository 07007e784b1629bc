"""Manifests: small JSON documents that say what a thing is, and their digests.

A manifest is frozen, validated where it is made, and written once. Its JSON is canonical (sorted
keys, two-space indent, newline at the end), so the same content is the same bytes, and `digest`
identifies it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from fusestore.errors import FormatVersionError, InvalidInputError
from fusestore.storage.publish import publish_new
from fusestore.storage.urls import Location
from fusestore.version import FORMAT_VERSION

MAX_MANIFEST_BYTES = 64 * 2**20
"""A manifest from elsewhere larger than this is refused before it is parsed."""


def canonical_json(value: Mapping[str, Any]) -> bytes:
    """The one JSON form of a value: sorted keys, two-space indent, newline at the end."""
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()


def digest_bytes(data: bytes) -> str:
    """SHA-256 of the bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


class Frozen(BaseModel):
    """A validated, immutable value object; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Manifest(Frozen):
    """Base of all manifests: carries the format version and knows its own canonical bytes."""

    format_version: int = FORMAT_VERSION

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, as hexadecimal."""
        return digest_bytes(self.to_bytes())

    def save(self, location: Location) -> None:
        """Write the manifest, create-only: see `publish_new`."""
        publish_new(location, self.to_bytes())

    @classmethod
    def load(cls, location: Location) -> Self:
        """Read and validate a manifest.

        Raises:
            NotFoundError: no such file.
            FormatVersionError: written by a newer version of the format.
            InvalidInputError: not a manifest of this kind.
        """
        data = location.read_bytes()
        if len(data) > MAX_MANIFEST_BYTES:
            raise InvalidInputError(
                f"{location} is {len(data):,} bytes, more than a manifest may hold "
                f"({MAX_MANIFEST_BYTES:,}); it was not read."
            )
        try:
            content = json.loads(data)
        except ValueError as error:
            raise InvalidInputError(f"{location} is not valid JSON: {error}") from error
        version = content.get("format_version") if isinstance(content, dict) else None
        if not isinstance(version, int):
            raise InvalidInputError(f"{location} is not a fusestore manifest: no format_version.")
        if version > FORMAT_VERSION:
            raise FormatVersionError(
                f"{location} has store format {version}; this fusestore reads up to "
                f"{FORMAT_VERSION}. Upgrade with `pip install -U fusestore`."
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise InvalidInputError(f"{location} is not a valid {cls.__name__}: {error}") from error
