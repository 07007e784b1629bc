"""Where a fusion's dataset goes, and a dataset that was begun found again."""

from __future__ import annotations

import os
from pathlib import Path

from fusestore.align.stored import open_alignment
from fusestore.cache.reader import open_cache
from fusestore.errors import NotFoundError
from fusestore.fuse.folder import PLAN_FILE, FusedFolder, plan_of
from fusestore.fuse.fusion import Fusion
from fusestore.fuse.manifest import FusionPlan
from fusestore.fuse.resolve import find_inputs
from fusestore.storage.location import Location
from fusestore.storage.packages import user_cache_folder
from fusestore.store.layout import Store


def place(
    store: Store,
    fusion: Fusion,
    name: str | None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> FusedFolder:
    """The folder of a fusion's dataset; nothing is written yet.

    Args:
        store: the store.
        fusion: what is fused.
        name: of the dataset in the store. Without one it is `recipe-` and the first digits of its
            digest, and that of a remote store is kept on this machine.
        cache_dir: where, by default fusestore's folder in the user's cache.
    """
    digest = plan_of(fusion).digest
    if name is None and not store.location.is_local:
        base = Path(cache_dir) if cache_dir is not None else user_cache_folder()
        location = Location.parse(base.expanduser().absolute() / "on_demand" / digest)
    else:
        location = store.fused(name or f"recipe-{digest[:16]}")
    return FusedFolder(location, fusion)


def reopen(store: Store, location: Location) -> FusedFolder:
    """A fused dataset that was begun, by the plan that its folder holds.

    Args:
        store: holds the inputs.
        location: the fused dataset's folder, anywhere.

    Raises:
        NotFoundError: nothing was begun there, or an input is gone.
        FingerprintMismatchError: an input is not what it was.
    """
    try:
        plan = FusionPlan.load(location / PLAN_FILE)
    except NotFoundError as error:
        raise NotFoundError(
            f"No fused dataset was begun at {location}. Begin one with `fusestore fuse` and a "
            "recipe, or --source and --target."
        ) from error
    folder = FusedFolder(location, find_inputs(store, plan.recipe, plan=plan))
    folder.begin()
    return folder


def is_current(store: Store, plan: FusionPlan) -> bool:
    """Whether caches and alignments are still those of the plan, by their manifests alone."""
    for source, digests in zip(plan.recipe.sources, plan.inputs, strict=True):
        if open_cache(store, source.cache).digest != digests.cache_digest:
            return False
        if source.alignment is not None:
            alignment = open_alignment(store.alignment(source.alignment))
            if alignment.manifest.digest != digests.alignment_digest:
                return False
    own = plan.recipe.target_cache
    return own is None or open_cache(store, own).digest == plan.target_cache_digest
