"""The artifacts of a store, read from manifests alone: no data, no heavy imports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusestore.errors import NotFoundError, StorageError
from fusestore.storage.location import Location
from fusestore.store.artifact_files import MANIFEST_FILE
from fusestore.store.findings import DAMAGE
from fusestore.store.layout import Store
from fusestore.store.manifest import (
    MAX_MANIFEST_BYTES,
    canonical_json,
    digest_bytes,
    manifest_content,
)
from fusestore.store.registry import Artifact, ArtifactKind, kinds, split_path

_WRONG_CONTENT = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError)
"""Errors of reading a document that is sound JSON but not a manifest of its kind."""


def list_artifacts(store: Store) -> list[Artifact]:
    """All artifacts of the store, each kind after the kinds it is made from, then by name.

    Raises:
        NotFoundError: there is no store.
    """
    if not store.location.exists():
        raise NotFoundError(
            f"There is no store at {store.location}. "
            "`fusestore corpus` or `fusestore run` makes one."
        )
    return [
        _read(kind, name, kind.location(store, name))
        for kind in kinds()
        for name in kind.names(store)
    ]


def find_artifact(store: Store, path: str) -> Artifact:
    """The artifact called `kind/name`, for instance `cache/smollm2`.

    Raises:
        InvalidInputError: not of that form.
        NotFoundError: no such artifact; the message lists all artifacts.
    """
    split_path(path)
    artifacts = list_artifacts(store)
    for artifact in artifacts:
        if artifact.path == path:
            return artifact
    names = ", ".join(artifact.path for artifact in artifacts) or "nothing"
    raise NotFoundError(f"There is no {path} in {store.location}. It holds: {names}.")


def _read(kind: ArtifactKind, name: str, location: Location) -> Artifact:
    file = location / MANIFEST_FILE
    if not file.exists():
        return Artifact(kind, name, location, None)
    try:
        content = _content(file)
        _ = kind.describe(content), tuple(kind.inputs(content)), kind.digest(content)
    except DAMAGE as error:
        return Artifact(kind, name, location, None, str(error))
    except StorageError as error:
        if not isinstance(error.__cause__, IsADirectoryError):
            raise
        return Artifact(kind, name, location, None, f"{file} is a folder.")
    except _WRONG_CONTENT as error:
        damage = f"{file} is not the manifest of a {kind.title}: {error!r}."
        return Artifact(kind, name, location, None, damage)
    return Artifact(kind, name, location, content)


def _content(file: Location) -> Mapping[str, Any]:
    content = manifest_content(file.read_prefix(MAX_MANIFEST_BYTES + 1), str(file))
    return {**content, "checksum": digest_bytes(canonical_json(content))}


def describe(artifact: Artifact) -> str:
    """One line on what an artifact is, or on how to finish or repair it."""
    if artifact.damage is not None:
        return f"its manifest is damaged; run `fusestore verify {artifact.path}`"
    if artifact.manifest is None:
        return artifact.kind.unfinished
    return artifact.kind.describe(artifact.manifest)
