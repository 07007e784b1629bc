"""`--expect`: copies are held to the digests that their author gave, by another way than the store.

A checksum in a store shows damage. It does not show who wrote the store: whoever changes a file can
write its checksum too. The digest of an artifact's manifest covers its files by their SHA-256, so a
copy that matches a digest from the author is the author's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from fusestore.errors import CorruptionError, InvalidInputError
from fusestore.store.artifact_files import Document
from fusestore.store.held_digest import digest_of


def expected_digests(
    expect: Sequence[str], names: Sequence[str], paths: Sequence[str]
) -> dict[str, str]:
    """The digest that each artifact of a copy is held to, by `kind/name`; empty without any.

    Args:
        expect: `KIND/NAME=DIGEST` each, or a digest alone for a copy of one named artifact.
        names: the artifacts that were named.
        paths: `kind/name` of everything that is copied.

    Raises:
        InvalidInputError: no digest, one of something else, or none for an artifact.
    """
    found: dict[str, str] = {}
    for text in expect:
        path, separator, digest = text.rpartition("=")
        if not separator:
            named = [each for each in paths if names and names[0] in (each, each.split("/", 1)[1])]
            if len(names) != 1 or len(named) != 1:
                raise InvalidInputError(
                    f"Of which artifact {text!r} is the digest cannot be told: write "
                    "KIND/NAME=DIGEST."
                )
            path = named[0]
        if path not in paths:
            raise InvalidInputError(
                f"A digest is expected of {path!r}, which is not copied; copied are "
                f"{', '.join(paths) or 'no artifacts'}."
            )
        found[path] = digest_of(digest)
    missing = [path for path in paths if path not in found] if found else []
    if missing:
        raise InvalidInputError(
            f"No digest is expected of {', '.join(missing)}, which would be copied too, so anybody "
            "may have made it. Give KIND/NAME=DIGEST for each, as their author has them."
        )
    return found


def check_expected(expected: Mapping[str, str], path: str, manifest: Document, where: str) -> None:
    """Check that the manifest of an artifact is the one that is expected.

    Args:
        expected: of `expected_digests`.
        path: `kind/name`.
        manifest: its manifest, whose own checksum was compared.
        where: its store, for the message.

    Raises:
        CorruptionError: it is another one.
    """
    actual = manifest_digest(manifest)
    if expected and actual != expected[path]:
        raise CorruptionError(
            f"{path} in {where} is not what was expected: its manifest has the digest "
            f"sha256:{actual}, not sha256:{expected[path]}. Nothing was copied. Somebody changed "
            "it, or it is another version: ask its author."
        )


def manifest_digest(manifest: Document) -> str:
    """The SHA-256 by which a manifest names itself, hexadecimal."""
    return str(json.loads(manifest.data)["checksum"])
