"""Bytes of a store by artifact, and of an artifact by array; one listing, no data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import Field

from fusestore.storage.objects import ListedFile
from fusestore.store.details import date_text, newest
from fusestore.store.inventory import find_artifact, list_artifacts
from fusestore.store.layout import Store
from fusestore.store.manifest import Frozen
from fusestore.store.registry import Artifact


class UsageEntry(Frozen):
    """The storage of one artifact, or of one part of an artifact.

    Attributes:
        name: `kind/name`; of a part the name of the array, folder or file.
        kind: of the artifact; of a part that of its artifact.
        state: complete, unfinished or damaged.
        num_bytes: bytes of all files.
        num_files: number of files, which are the objects of object storage.
        modified: date and time of the newest file by the storage's clock, ISO 8601 in UTC; null if
            the storage does not say.
        bytes_per_token: bytes for each token that it has a row for; null if it has no rows.
    """

    name: str
    kind: str
    state: str
    num_bytes: int = Field(ge=0)
    num_files: int = Field(ge=0)
    modified: str | None
    bytes_per_token: float | None


class KindUsage(Frozen):
    """The storage of all artifacts of one kind.

    Attributes:
        kind: the kind.
        num_artifacts: number of artifacts.
        num_bytes: bytes of all their files.
        num_files: number of their files.
    """

    kind: str
    num_artifacts: int = Field(ge=0)
    num_bytes: int = Field(ge=0)
    num_files: int = Field(ge=0)


class Usage(Frozen):
    """The storage of a store or of one artifact; what `fusestore du --json` prints.

    Attributes:
        store: its address.
        artifact: `kind/name` if it is that of one artifact; null for the whole store.
        entries: the artifacts of the store, or the parts of the artifact, largest first.
        kinds: of a whole store, the sums by kind, largest first.
        other_bytes: bytes of files in the store that belong to no artifact.
        num_bytes: bytes of all files.
        num_files: number of all files.
    """

    store: str
    artifact: str | None
    entries: tuple[UsageEntry, ...]
    kinds: tuple[KindUsage, ...]
    other_bytes: int = Field(ge=0)
    num_bytes: int = Field(ge=0)
    num_files: int = Field(ge=0)


def store_usage(store: Store, artifact: str | None = None) -> Usage:
    """The storage that a store, or one of its artifacts, takes.

    Args:
        store: the store.
        artifact: `kind/name`, or the name alone if only one artifact has it; None for all.

    Raises:
        NotFoundError: no such store or artifact.
        InvalidInputError: several artifacts have the name.
    """
    if artifact is not None:
        found = find_artifact(store, artifact)
        files = found.location.listed()
        entries = [_entry(found, part, inner) for part, inner in _by_part(files)]
        return _usage(store, found.path, entries, (), files)
    artifacts = list_artifacts(store)
    files = store.location.listed()
    by_artifact = files_by_artifact(store, artifacts, files)
    entries = [_entry(each, each.path, by_artifact[each.path]) for each in artifacts]
    return _usage(store, None, entries, _by_kind(entries), files)


def files_by_artifact(
    store: Store, artifacts: list[Artifact], files: Mapping[str, ListedFile]
) -> dict[str, dict[str, ListedFile]]:
    """The files of each artifact, by `kind/name` and then by path inside its folder.

    Args:
        store: the store.
        artifacts: all of the store.
        files: a listing of the whole store.
    """
    root = f"{store.location.url}/"
    folders = {artifact.location.url.removeprefix(root): artifact.path for artifact in artifacts}
    found: dict[str, dict[str, ListedFile]] = {artifact.path: {} for artifact in artifacts}
    for path, file in files.items():
        parts = path.split("/")
        # Folders of artifacts do not lie in each other.
        for depth in range(1, len(parts)):
            owner = folders.get("/".join(parts[:depth]))
            if owner is not None:
                found[owner]["/".join(parts[depth:])] = file
                break
    return found


def _by_part(files: Mapping[str, ListedFile]) -> Iterator[tuple[str, dict[str, ListedFile]]]:
    parts: dict[str, dict[str, ListedFile]] = {}
    for path, file in files.items():
        parts.setdefault(path.partition("/")[0], {})[path] = file
    yield from parts.items()


def _entry(artifact: Artifact, name: str, files: Mapping[str, ListedFile]) -> UsageEntry:
    num_bytes = sum(file.num_bytes for file in files.values())
    num_tokens = None if artifact.manifest is None else artifact.kind.num_tokens(artifact.manifest)
    return UsageEntry(
        name=name,
        kind=artifact.kind.name,
        state=artifact.state,
        num_bytes=num_bytes,
        num_files=len(files),
        modified=date_text(newest(files)),
        bytes_per_token=num_bytes / num_tokens if num_tokens else None,
    )


def _by_kind(entries: list[UsageEntry]) -> tuple[KindUsage, ...]:
    kinds = dict.fromkeys(entry.kind for entry in entries)
    return tuple(
        KindUsage(
            kind=kind,
            num_artifacts=sum(entry.kind == kind for entry in entries),
            num_bytes=sum(entry.num_bytes for entry in entries if entry.kind == kind),
            num_files=sum(entry.num_files for entry in entries if entry.kind == kind),
        )
        for kind in kinds
    )


def _usage(
    store: Store,
    artifact: str | None,
    entries: list[UsageEntry],
    kinds: tuple[KindUsage, ...],
    files: Mapping[str, ListedFile],
) -> Usage:
    num_bytes = sum(file.num_bytes for file in files.values())
    return Usage(
        store=str(store.location),
        artifact=artifact,
        entries=tuple(sorted(entries, key=lambda entry: (-entry.num_bytes, entry.name))),
        kinds=tuple(sorted(kinds, key=lambda kind: (-kind.num_bytes, kind.kind))),
        other_bytes=num_bytes - sum(entry.num_bytes for entry in entries),
        num_bytes=num_bytes,
        num_files=len(files),
    )
