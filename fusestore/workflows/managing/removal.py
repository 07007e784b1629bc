"""Removing artifacts, and whatever was made from them.

The manifest goes first, then receipts, then the files that they describe, and the fingerprint
last. So an interrupted removal leaves an unfinished artifact, of which nothing counts as made. The
same call finishes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from pydantic import Field

from fusestore.errors import InvalidInputError
from fusestore.storage.location import Location
from fusestore.storage.publish import retract, sync_folders
from fusestore.store.artifact_files import FINGERPRINT_FILE, MANIFEST_FILE
from fusestore.store.inventory import choose_artifact
from fusestore.store.layout import Store
from fusestore.store.leases import live_writers
from fusestore.store.lineage import Lineage
from fusestore.store.manifest import Frozen
from fusestore.store.registry import Artifact

_REQUESTS = 16
"""Files that are removed at the same time."""


class RemovedArtifact(Frozen):
    """One artifact of a removal.

    Attributes:
        artifact: `kind/name`.
        num_bytes: bytes of its files.
        num_files: number of its files.
        because_of: `kind/name` of an artifact that it was made from and that is removed too; null
            if it was named.
    """

    artifact: str
    num_bytes: int = Field(ge=0)
    num_files: int = Field(ge=0)
    because_of: str | None


class Removal(Frozen):
    """What a removal removes; what `fusestore rm --json` prints.

    Attributes:
        store: its address.
        dry_run: whether nothing was removed.
        artifacts: in the order of their removal: users before what they were made from.
        num_bytes: bytes that it frees.
        num_files: files that it removes.
    """

    store: str
    dry_run: bool
    artifacts: tuple[RemovedArtifact, ...]
    num_bytes: int = Field(ge=0)
    num_files: int = Field(ge=0)


def remove_artifacts(
    store: Store, artifacts: Sequence[str], *, cascade: bool = False, dry_run: bool = False
) -> Removal:
    """Remove artifacts of a store.

    Args:
        store: the store.
        artifacts: `kind/name` of each, or the name alone if only one artifact has it.
        cascade: also remove everything that was made from them, directly or not.
        dry_run: only find out what would be removed.

    Raises:
        NotFoundError: no such store or artifact.
        InvalidInputError: something was made from one of them that would stay, or a process
            writes one of them. Nothing was removed.
        AccessDeniedError, StorageError: the storage failed; the same call continues.
    """
    lineage = Lineage.of(store)
    named = {
        found.path: found
        for found in (choose_artifact(store, lineage.artifacts, path) for path in artifacts)
    }
    users = lineage.broken_without(named)
    if users and not cascade:
        listed = ", ".join(user.path for user in users)
        raise InvalidInputError(
            f"{', '.join(named)} cannot be removed: {len(users)} of the artifacts in "
            f"{store.location} were made from it and would stay: {listed}. Nothing was removed. "
            "Remove them too with --cascade, after a look with --cascade --dry-run."
        )
    gone = {*named, *(user.path for user in users)}
    removed = [each for each in reversed(lineage.artifacts) if each.path in gone]
    # Of a link the link alone is removed, and nothing behind it is even listed.
    listings = {
        each.path: {} if each.location.is_link else each.location.listed() for each in removed
    }
    for each in removed:
        writers = live_writers(each.location, listings[each.path])
        if writers:
            raise InvalidInputError(
                f"{each.path} is being written by {' and '.join(writers)}. Nothing was removed; "
                "stop the writer first, or wait until it is done."
            )
    if not dry_run:
        for each in removed:
            remove_folder(each.location, listings[each.path])
    return Removal(
        store=str(store.location),
        dry_run=dry_run,
        artifacts=tuple(
            RemovedArtifact(
                artifact=each.path,
                num_bytes=sum(file.num_bytes for file in listings[each.path].values()),
                num_files=len(listings[each.path]),
                because_of=None if each.path in named else _cause(lineage, each, gone),
            )
            for each in removed
        ),
        num_bytes=sum(file.num_bytes for listing in listings.values() for file in listing.values()),
        num_files=sum(map(len, listings.values())),
    )


def remove_folder(folder: Location, files: Iterable[str]) -> None:
    """Remove an artifact's folder, in an order that leaves nothing that looks whole.

    Args:
        folder: the artifact's folder.
        files: a listing of it.
    """
    if folder.is_link:
        folder.delete()
        return
    retract(folder / MANIFEST_FILE)
    # Receipts, and manifests of parts, stand for files that are about to go.
    documents = [
        path
        for path in files
        if path.endswith(".json")
        and not path.endswith("zarr.json")
        and path not in (MANIFEST_FILE, FINGERPRINT_FILE)
    ]
    others = {path.partition("/")[0] for path in files} - {MANIFEST_FILE, FINGERPRINT_FILE}
    with ThreadPoolExecutor(_REQUESTS) as pool:
        list(pool.map(lambda name: (folder / name).delete(), documents))
        sync_folders(folder)
        list(pool.map(lambda name: (folder / name).delete(), others))
    folder.delete()


def _cause(lineage: Lineage, artifact: Artifact, gone: set[str]) -> str | None:
    inputs = (found.artifact for found in lineage.inputs(artifact))
    return next((each.path for each in inputs if each is not None and each.path in gone), None)
