"""Clearing up: what nothing in a store can use, and what its stages would make again by themselves.

Removed are temporary files of processes that have ended, locks that nobody holds, leases of
complete artifacts, tokens of an earlier corpus, and vocabularies, maps and fits that no artifact
was made from or is read with. Unfinished artifacts can be continued, so they are removed only on
request.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from pydantic import Field

from fusestore.fuse.locks import is_lock, remove_free_lock
from fusestore.storage.objects import ListedFile
from fusestore.storage.publish import is_abandoned, storage_clock
from fusestore.store.details import newest
from fusestore.store.layout import Store
from fusestore.store.leases import LEASE_FOLDER, live_writers
from fusestore.store.lineage import Lineage
from fusestore.store.manifest import Frozen
from fusestore.store.registry import Artifact
from fusestore.workflows.managing.removal import remove_folder
from fusestore.workflows.managing.usage import files_by_artifact

_DAY_S = 24 * 3600


class GarbageSettings(Frozen):
    """What `fusestore gc` leaves alone."""

    older_than: float = Field(
        default=1.0,
        ge=0,
        description="Days: what was written since is left alone.",
        json_schema_extra={"metavar": "DAYS"},
    )
    unfinished_older_than: float | None = Field(
        default=None,
        ge=0,
        description="Days: also remove unfinished artifacts that nobody has written to since, "
        "except for fused datasets, which can be used. By default they stay.",
        json_schema_extra={"metavar": "DAYS"},
    )


class GarbageItem(Frozen):
    """A file or folder that is removed.

    Attributes:
        path: relative to the store.
        reason: why it is of no use.
        num_bytes: its bytes.
        num_files: its files.
    """

    path: str
    reason: str
    num_bytes: int = Field(ge=0)
    num_files: int = Field(ge=0)


class Garbage(Frozen):
    """What is cleared up; what `fusestore gc --json` prints.

    Attributes:
        store: its address.
        dry_run: whether nothing was removed.
        items: in the order of their removal.
        num_bytes: bytes that it frees.
        num_files: files that it removes.
    """

    store: str
    dry_run: bool
    items: tuple[GarbageItem, ...]
    num_bytes: int = Field(ge=0)
    num_files: int = Field(ge=0)


def collect_garbage(
    store: Store, settings: GarbageSettings | None = None, *, dry_run: bool = False
) -> Garbage:
    """Remove what nothing in a store can use, and what stages would make again by themselves.

    An artifact that a process writes is left alone.

    Args:
        store: the store.
        settings: what is left alone; the defaults unless given.
        dry_run: only find out what would be removed.

    Raises:
        NotFoundError: there is no store.
        AccessDeniedError, StorageError: the storage failed; the same call continues.
    """
    settings = settings or GarbageSettings()
    lineage = Lineage.of(store)
    files = store.location.listed()
    clock = storage_clock(store.location)
    # Only a storage on which nothing can be written does not say its time.
    now = clock() or time.time()
    old = {
        path: file
        for path, file in files.items()
        if file.modified is not None and now - file.modified >= settings.older_than * _DAY_S
    }
    items = [
        GarbageItem(
            path=path,
            reason="temporary file of a process that has ended",
            num_bytes=file.num_bytes,
            num_files=1,
        )
        for path, file in files.items()
        if is_abandoned(path.rpartition("/")[2], file.modified, clock)
    ]
    items += [
        GarbageItem(
            path=path,
            reason="lock of a shard that no process holds",
            num_bytes=file.num_bytes,
            num_files=1,
        )
        for path, file in files.items()
        if is_lock(path) and remove_free_lock(store.location / path, dry_run=True)
    ]
    by_artifact = files_by_artifact(store, list(lineage.artifacts), files)
    whole: list[tuple[Artifact, str]] = list(_unused(lineage, by_artifact, now, settings))
    unused = {artifact.path for artifact, _ in whole}
    for artifact in lineage.artifacts:
        own = by_artifact[artifact.path]
        if artifact.path in unused or live_writers(artifact.location, own):
            continue
        if artifact.manifest is not None:
            root = _root(store, artifact)
            items += [
                GarbageItem(
                    path=root + path, reason=reason, num_bytes=own[path].num_bytes, num_files=1
                )
                for path, reason in _leftovers(artifact, own)
                if root + path in old
            ]
        elif artifact.damage is None:
            reason = _why_unfinished(artifact, own, now, settings)
            whole += [(artifact, reason)] if reason else []
    if not dry_run:
        for item in items:
            file = store.location / item.path
            if is_lock(item.path):
                # Unless a process holds it by now.
                remove_free_lock(file)
            else:
                file.delete()
        for artifact, _ in whole:
            remove_folder(artifact.location, by_artifact[artifact.path])
    items += [
        GarbageItem(
            path=_root(store, artifact).rstrip("/"),
            reason=reason,
            num_bytes=sum(file.num_bytes for file in by_artifact[artifact.path].values()),
            num_files=len(by_artifact[artifact.path]),
        )
        for artifact, reason in whole
    ]
    return Garbage(
        store=str(store.location),
        dry_run=dry_run,
        items=tuple(items),
        num_bytes=sum(item.num_bytes for item in items),
        num_files=sum(item.num_files for item in items),
    )


def _root(store: Store, artifact: Artifact) -> str:
    return artifact.location.url.removeprefix(f"{store.location.url}/") + "/"


def _leftovers(artifact: Artifact, files: Mapping[str, ListedFile]) -> Iterator[tuple[str, str]]:
    """Files inside a complete artifact, each with the reason why it is of no use."""
    for path in files:
        if path.startswith(f"{LEASE_FOLDER}/"):
            yield path, "lease of an artifact that is complete"
    for path in artifact.kind.leftovers(artifact, files):
        yield path, f"left by an earlier {artifact.kind.title} of this name"


def _unused(
    lineage: Lineage,
    files: Mapping[str, Mapping[str, ListedFile]],
    now: float,
    settings: GarbageSettings,
) -> Iterator[tuple[Artifact, str]]:
    """Artifacts that are made on demand and that nothing uses; users before inputs."""
    gone: set[str] = set()
    for artifact in reversed(lineage.artifacts):
        if not artifact.kind.made_on_demand:
            continue
        users = [*lineage.used_by(artifact), *_accompanied(lineage, artifact)]
        if any(user.path not in gone for user in users):
            continue
        # A removal that was interrupted leaves no manifest. But one may also be lost.
        if artifact.manifest is None and (
            artifact.damage is not None
            or _may_be_lacked(lineage, artifact, gone)
            or live_writers(artifact.location, files[artifact.path])
        ):
            continue
        if _untouched(files[artifact.path], now, settings.older_than):
            gone.add(artifact.path)
            yield artifact, "no artifact uses it; it is made again when it is needed"


def _accompanied(lineage: Lineage, artifact: Artifact) -> Iterator[Artifact]:
    """Artifacts that later stages read together with this one."""
    manifest = artifact.manifest
    if manifest is not None:
        yield from (
            other for other in lineage.artifacts if artifact.kind.accompanies(manifest, other)
        )


def _may_be_lacked(lineage: Lineage, artifact: Artifact, gone: set[str]) -> bool:
    """Whether an artifact that stays lacks an input of this kind."""
    return any(
        found.artifact is None and found.input.kind == artifact.kind.name
        for user in lineage.artifacts
        if user.path not in gone
        for found in lineage.inputs(user)
    )


def _why_unfinished(
    artifact: Artifact, files: Mapping[str, ListedFile], now: float, settings: GarbageSettings
) -> str | None:
    days = settings.unfinished_older_than
    if days is None or artifact.kind.usable_unfinished or not _untouched(files, now, days):
        return None
    return f"unfinished, and not written to for {days:g} days"


def _untouched(files: Mapping[str, ListedFile], now: float, days: float) -> bool:
    """Whether no file was written in the last days; a storage without dates never says so."""
    dates = [file.modified for file in files.values()]
    latest = newest(files)
    return None not in dates and latest is not None and now - latest >= days * _DAY_S
