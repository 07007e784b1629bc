"""The two forms of a fused dataset, when it goes from one store to another.

The shared form is for storage, the local one for mapping (`fuse/shared.py`). A dataset in the first
arrives in the second where the target is a folder of this machine; and a dataset that the
target has in the other form is there already.
"""

from __future__ import annotations

from collections.abc import Callable

from fusestore.errors import AlreadyExistsError
from fusestore.fuse.folder import MANIFEST_FILE, PLAN_FILE
from fusestore.fuse.manifest import FusedManifest, FusionPlan
from fusestore.fuse.shared import unpack_fused
from fusestore.progress import Progress
from fusestore.storage.location import Location
from fusestore.store.layout import Store

Unpack = Callable[[Progress], FusedManifest]


def change_of_form(source: Store, target: Store, name: str) -> Unpack | bool:
    """What copying the thing `kind/name` takes beyond copying its files.

    Returns:
        False: nothing; copy its files. True: the target has it already, in the other form. Else
        what writes the local form.

    Raises:
        AlreadyExistsError: the target has something else of this name where the form changes.
    """
    kind, _, own = name.partition("/")
    if kind != "fused":
        return False
    here, there = source.fused(own), target.fused(own)
    manifest = FusedManifest.load_if_sound(here / MANIFEST_FILE)
    if manifest is None:
        # Whoever copies files says what is wrong.
        return False
    existing = FusedManifest.load_if_sound(there / MANIFEST_FILE)
    if existing is not None and existing.form != manifest.form:
        if existing.plan_digest == manifest.plan_digest:
            return True
        raise _other(here, manifest.plan_digest, there, existing.plan_digest)
    if manifest.form == "shared" and target.location.is_local and existing is None:
        _check_free(here, manifest, there)
        return lambda progress: unpack_fused(here, there, progress)
    return False


def _check_free(here: Location, manifest: FusedManifest, there: Location) -> None:
    """See that nothing lies at the target, or an unfinished dataset of the same plan."""
    sizes = there.sizes()
    plan = FusionPlan.load_if_sound(there / PLAN_FILE)
    if plan is not None and plan.digest != manifest.plan_digest:
        raise _other(here, manifest.plan_digest, there, plan.digest)
    if MANIFEST_FILE in sizes or (sizes and plan is None):
        raise AlreadyExistsError(
            f"{there} holds files, but its {MANIFEST_FILE if plan else PLAN_FILE} is missing or "
            "damaged. Nothing was copied; delete that folder and copy again."
        )


def _other(here: Location, ours: str, there: Location, theirs: str) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"{there} is another fused dataset than {here}: its plan has the digest {theirs}, the one "
        f"there {ours}. Nothing was copied; delete or rename one of the two."
    )
