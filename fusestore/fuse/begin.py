"""The folder of a fusion's dataset, and reopening an unfinished dataset."""

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
    """The folder of a fusion's dataset; writes nothing.

    Args:
        store: the store.
        fusion: what is fused.
        name: of the dataset in the store. By default `recipe-` and the first digits of its digest;
            such a dataset of a remote store is kept on this machine.
        cache_dir: local folder for it; by default fusestore's folder in the user's cache.
    """
    digest = plan_of(fusion).digest
    if name is None and not store.location.is_local:
        base = Path(cache_dir) if cache_dir is not None else user_cache_folder()
        location = Location.parse(base.expanduser().absolute() / "on_demand" / digest)
    else:
        location = store.fused(name or f"recipe-{digest[:16]}")
    return FusedFolder(location, fusion)


def reopen(store: Store, location: Location) -> FusedFolder:
    """An unfinished fused dataset, by the plan in its folder.

    Args:
        store: holds the inputs.
        location: the fused dataset's folder, anywhere.

    Raises:
        NotFoundError: the folder has no plan, or an input is missing.
        FingerprintMismatchError: an input has changed.
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
    """Whether caches and alignments are still those of the plan, by their manifests."""
    for source, digests in zip(plan.recipe.sources, plan.inputs, strict=True):
        if open_cache(store, source.cache).digest != digests.cache_digest:
            return False
        if source.alignment is not None:
            alignment = open_alignment(store.alignment(source.alignment))
            if alignment.manifest.digest != digests.alignment_digest:
                return False
    target_cache = plan.recipe.target_cache
    return target_cache is None or (
        open_cache(store, target_cache).digest == plan.target_cache_digest
    )
