"""The artifacts of a store, read from manifests alone: no data, no heavy imports."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from fusestore.errors import InvalidInputError, NotFoundError, StorageError
from fusestore.storage.location import Location
from fusestore.store.artifact_files import FINGERPRINT_FILE, MANIFEST_FILE
from fusestore.store.findings import DAMAGE
from fusestore.store.layout import Store, check_name, is_name
from fusestore.store.manifest import (
    MAX_MANIFEST_BYTES,
    canonical_json,
    digest_bytes,
    manifest_content,
)
from fusestore.store.registry import Artifact, ArtifactKind, kind_named, kinds, split_path

_NAMES_SHOWN = 20
"""Names that the error about a missing artifact lists."""

_WRONG_CONTENT = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError)
"""Errors of reading a document that is sound JSON but not a manifest of its kind."""


def check_store(store: Store) -> None:
    """Check that there is a store, with anything in it.

    Raises:
        NotFoundError: there is none.
    """
    if not store.location.exists():
        raise NotFoundError(
            f"There is no store at {store.location}. "
            "`fusestore corpus` or `fusestore run` makes one."
        )


def list_artifacts(store: Store) -> list[Artifact]:
    """All artifacts of the store, each kind after the kinds it is made from, then by name.

    Raises:
        NotFoundError: there is no store.
    """
    check_store(store)
    return [
        _read(kind, name, kind.location(store, name))
        for kind in kinds()
        for name in kind.names(store)
    ]


def find_artifact(store: Store, path: str) -> Artifact:
    """The artifact called `kind/name`, such as `cache/smollm2`, or `name` if only one has it.

    Raises:
        InvalidInputError: not of that form, or several artifacts have the name.
        NotFoundError: no such artifact; the message names the nearest.
    """
    return choose_artifact(store, list_artifacts(store), path)


def choose_artifact(store: Store, artifacts: Sequence[Artifact], path: str) -> Artifact:
    """One of a store's artifacts; see `find_artifact`."""
    bare = "/" not in path
    if not bare:
        split_path(path)
    found = [each for each in artifacts if path in (each.path, each.name if bare else "")]
    if len(found) == 1:
        return found[0]
    if found:
        paths = " and ".join(artifact.path for artifact in found)
        raise InvalidInputError(f"{store.location} has {paths}. Name one of them with its kind.")
    kind, _, name = path.rpartition("/")
    same = [each for each in artifacts if each.kind.name == kind] or artifacts
    raise NotFoundError(
        f"There is no {'artifact ' * bare}{path} in {store.location}. "
        f"{_nearest_or_all(name, {each.path: each.name for each in same})}"
    )


def read_artifact(store: Store, kind: str, name: str) -> Artifact:
    """The artifact of a kind and a name; no other one is read.

    Raises:
        InvalidInputError: an impossible name.
    """
    found = kind_named(kind)
    return _read(found, name, found.location(store, check_name(name)))


def check_begun(store: Store, kind: str, name: str) -> None:
    """Check that a store has an artifact, complete or not, before anything slow is imported.

    Args:
        store: the store.
        kind: name of its kind, such as `cache`.
        name: of the artifact.

    Raises:
        NotFoundError: it has not; the message names the nearest.
        InvalidInputError: an impossible name.
    """
    location = kind_named(kind).location(store, check_name(name))
    if not any((location / file).exists() for file in (MANIFEST_FILE, FINGERPRINT_FILE)):
        check_store(store)
        raise no_such(store, kind, name)


def no_such(store: Store, kind: str, name: str) -> NotFoundError:
    """The error for a missing artifact of one kind.

    Args:
        store: the store.
        kind: name of the kind, such as `cache`.
        name: of the missing artifact.
    """
    found = kind_named(kind)
    names = found.names(store)
    return NotFoundError(
        f"There is no {found.title} {name!r} in {store.location}. "
        f"{_nearest_or_all(name, dict(zip(names, names, strict=True)))} {found.made_by}".rstrip()
    )


def _nearest_or_all(name: str, names: Mapping[str, str]) -> str:
    """What is called almost so, or what there is at all; `names` by what is shown."""
    near = difflib.get_close_matches(name, names.values(), n=2)
    if near:
        shown = [path for path, known in names.items() if known in near]
        return f"Did you mean {' or '.join(map(repr, shown))}?"
    rest = len(names) - _NAMES_SHOWN
    more = f" and {rest} more; see `fusestore ls`" if rest > 0 else ""
    held = ", ".join(list(names)[:_NAMES_SHOWN]) or "nothing"
    return f"It holds: {held}{more}."


def name_by_digest(store: Store, kind: str, digest: str, hint: str) -> str:
    """The name of the complete artifact of a digest: names may change, digests do not.

    Args:
        store: the store.
        kind: name of its kind.
        digest: its `ArtifactKind.digest`.
        hint: its name at an earlier time, which is looked at first.

    Returns:
        The hint if the store holds no such artifact, for the error of whoever opens it.
    """
    found = kind_named(kind)
    names = [hint, *(name for name in found.names(store) if name != hint)]
    for name in names:
        if is_name(name) and _read(found, name, found.location(store, name)).digest == digest:
            return name
    return hint


def _read(kind: ArtifactKind, name: str, location: Location) -> Artifact:
    file = location / MANIFEST_FILE
    try:
        if not file.exists():
            return Artifact(kind, name, location, None, fingerprint=_fingerprint(kind, location))
        content = _content(file)
        # Whatever is asked of a manifest later is asked once here, where an error is damage.
        _ = kind.describe(content), tuple(kind.inputs(content)), kind.digest(content)
        _ = kind.model(content), kind.num_tokens(content)
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


def _fingerprint(kind: ArtifactKind, location: Location) -> Mapping[str, Any] | None:
    """The content of an unfinished artifact's fingerprint, if its inputs can be read from it."""
    try:
        content = _content(location / FINGERPRINT_FILE)
        _ = tuple(kind.begun_inputs(content))
    except (*DAMAGE, *_WRONG_CONTENT, IsADirectoryError, StorageError):
        return None
    return content


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
