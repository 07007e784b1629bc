"""The two forms of a fused dataset, when it is copied from one store to another.

The shared form is for storage, the local form for mapping (`fuse/shared.py`). A dataset in the
shared form is unpacked where the target is a folder of this machine. A dataset that the target has
in the other form is not copied.
"""

from __future__ import annotations

from fusestore.errors import AlreadyExistsError
from fusestore.fuse.folder import PLAN_FILE
from fusestore.fuse.manifest import FusedManifest, FusionPlan
from fusestore.fuse.shared import unpack_fused
from fusestore.progress import Progress
from fusestore.storage.location import Location
from fusestore.store.artifact_files import MANIFEST_FILE
from fusestore.store.artifact_types import Conversion, Converted


def change_of_form(source: Location, target: Location) -> Conversion | bool:
    """See `ArtifactKind.conversion`.

    Args:
        source: the dataset's folder.
        target: the folder to copy to.
    """
    manifest = FusedManifest.load_if_sound(source / MANIFEST_FILE)
    if manifest is None:
        # The copy of the files reports the damage.
        return False
    existing = FusedManifest.load_if_sound(target / MANIFEST_FILE)
    if existing is not None and existing.form != manifest.form:
        if existing.plan_digest == manifest.plan_digest:
            return True
        raise _other_dataset(source, manifest.plan_digest, target, existing.plan_digest)
    if manifest.form == "shared" and target.is_local and existing is None:
        _check_free(source, manifest, target)

        def unpack(progress: Progress) -> Converted:
            unpacked = unpack_fused(source, target, progress)
            return Converted(len(unpacked.files), unpacked.num_bytes)

        return unpack
    return False


def _check_free(source: Location, manifest: FusedManifest, target: Location) -> None:
    """Check that the target is empty or holds an unfinished dataset of the same plan."""
    sizes = target.sizes()
    plan = FusionPlan.load_if_sound(target / PLAN_FILE)
    if plan is not None and plan.digest != manifest.plan_digest:
        raise _other_dataset(source, manifest.plan_digest, target, plan.digest)
    if MANIFEST_FILE in sizes or (sizes and plan is None):
        raise AlreadyExistsError(
            f"{target} holds files, but its {MANIFEST_FILE if plan else PLAN_FILE} is missing or "
            "damaged. Nothing was copied; delete that folder and copy again."
        )


def _other_dataset(
    source: Location, source_digest: str, target: Location, target_digest: str
) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"{target} is another fused dataset than {source}: its plan has the digest "
        f"{target_digest}, that of the source {source_digest}. Nothing was copied; delete or "
        "rename one of the two."
    )
