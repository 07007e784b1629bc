"""Making damaged shards of a fused dataset again from the caches and alignments it came from."""

from __future__ import annotations

from fusestore.errors import CorruptionError, IncompatibleError, NotFoundError
from fusestore.fuse.folder import PLAN_FILE, FusedFolder
from fusestore.fuse.manifest import FusedManifest, FusedReceipt, FusionPlan
from fusestore.fuse.materialize import materialize
from fusestore.fuse.resolve import find_inputs
from fusestore.storage.location import Location
from fusestore.store.artifact_files import MANIFEST_FILE
from fusestore.store.layout import Store
from fusestore.store.manifest import check_repaired
from fusestore.store.receipts import FileRecord


def rebuild_fused(store: Store, name: str) -> None:
    """Fuse exactly the damaged shards again, and write anew what else is damaged.

    Of a dataset that was only begun, damaged shards are removed: they are made when they are read.

    Raises:
        NotFoundError, CorruptionError: what it was made from is not there, or damaged.
        IncompatibleError: what it was made from is something else now, or it comes out otherwise.
    """
    location = store.fused(name)
    complete = (location / MANIFEST_FILE).exists()
    old = FusedManifest.load_if_sound(location / MANIFEST_FILE)
    kept = FusionPlan.load_if_sound(location / PLAN_FILE)
    plan = kept if old is None else old.plan
    if plan is None:
        raise CorruptionError(
            f"Neither manifest.json nor fingerprint.json of {location} is sound, so nothing says "
            "what was fused. Delete it and run `fusestore fuse` again."
        )
    folder = FusedFolder(location, find_inputs(store, plan.recipe, plan=plan))
    if folder.plan != plan:
        raise IncompatibleError(
            f"The caches, maps or alignments that {location} was made from are not those that are "
            "in the store now. Bring them back, or fuse anew under another name."
        )
    (location / MANIFEST_FILE).delete()
    if kept != plan:
        (location / PLAN_FILE).delete()
    _forget_damaged(location, plan)
    if complete:
        check_repaired(old, materialize(folder), location)
    else:
        folder.begin()
        folder.complete()


def _forget_damaged(location: Location, plan: FusionPlan) -> None:
    """Remove the receipts of shards that are not whole: a shard without receipt is made again."""
    for name in (location / "receipts").list():
        file = location / "receipts" / name
        receipt = FusedReceipt.load_if_sound(file)
        if (
            receipt is None
            or receipt.fingerprint_digest != plan.digest
            or not _holds(location, receipt)
        ):
            file.delete()


def _holds(location: Location, receipt: FusedReceipt) -> bool:
    try:
        return all(
            FileRecord.of((location / path).read_bytes()) == record
            for path, record in receipt.files.items()
        )
    except NotFoundError:
        return False
