"""The two forms of a fused dataset, when it goes from one store to another.

The shared form is for storage, the local one for mapping (`fuse/shared.py`). A dataset in the first
arrives in the second where the target is a folder of this machine; and a dataset that the
target has in the other form is there already.
"""

from __future__ import annotations

from collections.abc import Callable

from fusestore.errors import FingerprintMismatchError
from fusestore.fuse.folder import MANIFEST_FILE
from fusestore.fuse.manifest import FusedManifest
from fusestore.fuse.shared import unpack_fused
from fusestore.progress import Progress
from fusestore.storage.store import Store

Unpack = Callable[[Progress], FusedManifest]


def change_of_form(source: Store, target: Store, name: str) -> Unpack | bool:
    """What copying the thing `kind/name` takes beyond copying its files.

    Returns:
        False: nothing; copy its files. True: the target has it already, in the other form. Else
        what writes the local form.

    Raises:
        FingerprintMismatchError: the target has another dataset of this name, in the other form.
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
        raise FingerprintMismatchError(
            f"{there} holds another fused dataset than {here}, made from something else. "
            "Nothing was copied: give one of them another name."
        )
    if manifest.form == "shared" and target.location.is_local and existing is None:
        return lambda progress: unpack_fused(here, there, progress)
    return False
