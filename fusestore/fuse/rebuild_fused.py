"""Rebuilding damaged shards of a fused dataset from its caches and alignments."""

from __future__ import annotations

from fusestore.errors import CorruptionError, IncompatibleError
from fusestore.fuse.folder import PLAN_FILE, FusedFolder
from fusestore.fuse.locks import remove_locks
from fusestore.fuse.manifest import FusedManifest, FusedReceipt, FusionPlan
from fusestore.fuse.resolve import find_inputs
from fusestore.storage.location import Location
from fusestore.storage.publish import publish, remove_abandoned, retract, sync_folders
from fusestore.store.artifact_files import MANIFEST_FILE
from fusestore.store.copy import matches
from fusestore.store.layout import Store
from fusestore.store.leases import LEASE_FOLDER, remove_leases
from fusestore.store.manifest import check_repaired


def rebuild_fused(store: Store, name: str) -> None:
    """Fuse the damaged shards again, and replace other damaged files.

    The manifest of a complete dataset stays meanwhile: what a killed repair leaves is a complete
    dataset with damage, which the next repair finds. Of an unfinished dataset the damaged shards
    are removed: they are made when they are read.

    Raises:
        NotFoundError, CorruptionError: an input is missing or damaged.
        IncompatibleError: an input has changed, or the result differs from the manifest.
    """
    location = store.fused(name)
    complete = (location / MANIFEST_FILE).exists()
    old = FusedManifest.load_if_sound(location / MANIFEST_FILE)
    kept = FusionPlan.load_if_sound(location / PLAN_FILE)
    plan = kept if old is None else old.plan
    if plan is None:
        raise CorruptionError(
            f"Neither manifest.json nor fingerprint.json of {location} is sound, so its recipe is "
            "lost. Delete it and run `fusestore fuse` again."
        )
    folder = FusedFolder(location, find_inputs(store, plan.recipe, plan=plan))
    if folder.plan != plan:
        raise IncompatibleError(
            f"{location} was made from other caches, maps or alignments than the store has now. "
            "Restore them, or fuse again under another name."
        )
    remove_abandoned(location)
    if kept != plan:
        publish(location / PLAN_FILE, plan.to_bytes())
    _remove_damaged(location, plan)
    if not complete:
        folder.begin()
        folder.complete()
        return
    folder.write_metadata()
    made = folder.make_missing()
    if made != old:
        sync_folders(location)
        publish(location / MANIFEST_FILE, made.to_bytes())
    remove_leases(location / LEASE_FOLDER)
    remove_locks(location)
    check_repaired(old, made, location)


def _remove_damaged(location: Location, plan: FusionPlan) -> None:
    """Remove the receipts of damaged shards: a shard without a receipt is made again."""
    for name in (location / "receipts").list():
        file = location / "receipts" / name
        receipt = FusedReceipt.load_if_sound(file)
        if (
            receipt is None
            or receipt.fingerprint_digest != plan.digest
            or not all(matches(location / path, record) for path, record in receipt.files.items())
        ):
            retract(file)
