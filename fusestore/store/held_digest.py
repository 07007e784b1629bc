"""Holding an artifact to the digest of its manifest, which its author gave by another way."""

from __future__ import annotations

import re

from fusestore.errors import CorruptionError, InvalidInputError

_PREFIX = "sha256:"


def digest_of(text: str) -> str:
    """The 64 hexadecimal digits of a digest, with or without `sha256:` before them.

    Raises:
        InvalidInputError: it is no whole SHA-256.
    """
    digest = text.strip().removeprefix(_PREFIX).lower()
    if re.fullmatch("[0-9a-f]{64}", digest) is None:
        raise InvalidInputError(
            f"{text!r} is no digest: expected sha256: and all 64 hexadecimal digits, as "
            "`fusestore show` and `fusestore push` print it."
        )
    return digest


def check_digest(expected: str | None, actual: str, where: object) -> None:
    """Check the digest of a manifest; nothing is checked if none is expected.

    Args:
        expected: as a person gave it.
        actual: of the manifest that was read, whose own checksum was compared.
        where: for messages.

    Raises:
        CorruptionError: it is another manifest.
        InvalidInputError: `expected` is no whole SHA-256.
    """
    if expected is not None and digest_of(expected) != actual:
        raise CorruptionError(
            f"{where} is not what was expected: its manifest has the digest {_PREFIX}{actual}, not "
            f"{_PREFIX}{digest_of(expected)}. Somebody changed it, or it is another version: ask "
            "its author."
        )
