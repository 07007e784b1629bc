"""The folder of a fusion's dataset, and reopening an unfinished dataset."""

from __future__ import annotations

import os

from fusestore.align.stored import open_alignment
from fusestore.cache.reader import open_cache
from fusestore.errors import NotFoundError
from fusestore.fuse.folder import PLAN_FILE, FusedFolder, plan_of
from fusestore.fuse.fusion import Fusion
from fusestore.fuse.manifest import FusionPlan
from fusestore.fuse.resolve import find_inputs, with_names_now
from fusestore.storage.location import Location
from fusestore.storage.packages import cache_folder
from fusestore.storage.private_folder import private_folder
from fusestore.store.layout import Store, near_names


def place(
    store: Store,
    fusion: Fusion,
    name: str | None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> FusedFolder:
    """The folder of a fusion's dataset; of a remote store it is made, all else stays as it is.

    Args:
        store: the store.
        fusion: what is fused.
        name: of the dataset in the store. By default `recipe-` and the first digits of its digest;
            such a dataset of a remote store is kept on this machine.
        cache_dir: local folder for it; by default fusestore's folder in the user's cache.
    """
    digest = plan_of(fusion).digest
    if name is None and not store.location.is_local:
        base = private_folder(cache_folder(cache_dir) / "on_demand", link=False)
        location = Location.parse(private_folder(base / digest, link=False))
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
            f"No fused dataset was begun at {location}.{near_names(location)} Begin one "
            "with `fusestore fuse` and a recipe, or --source and --target."
        ) from error
    folder = FusedFolder(location, find_inputs(store, plan.recipe, plan=plan))
    folder.begin()
    return folder


def is_current(store: Store, plan: FusionPlan) -> bool:
    """Whether the store holds the caches and alignments of the plan, by their manifests."""
    recipe = with_names_now(store, plan)
    for source, digests in zip(recipe.sources, plan.inputs, strict=True):
        if open_cache(store, source.cache).digest != digests.cache_digest:
            return False
        if source.alignment is not None:
            alignment = open_alignment(store.alignment(source.alignment))
            if alignment.manifest.digest != digests.alignment_digest:
                return False
    target_cache = recipe.target_cache
    return target_cache is None or (
        open_cache(store, target_cache).digest == plan.target_cache_digest
    )


def same_but_for_names(store: Store, location: Location, plan: FusionPlan) -> FusionPlan | None:
    """The plan in a folder, if it differs from another only in names that inputs had before.

    Args:
        store: holds the inputs.
        location: a fused dataset's folder.
        plan: of a fusion of the inputs as they are called now.
    """
    stored = FusionPlan.load_if_sound(location / PLAN_FILE)
    if stored is None or stored == plan:
        return None
    inputs = (each.model_copy(update={"cache": ""}) for each in stored.inputs)
    wanted = (each.model_copy(update={"cache": ""}) for each in plan.inputs)
    if tuple(inputs) != tuple(wanted) or with_names_now(store, stored) != plan.recipe:
        return None
    return stored
