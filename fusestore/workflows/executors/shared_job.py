"""`Job`: one command that several workers run on one artifact, and how far they are."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from fusestore.align.manifest import AlignmentFingerprint
from fusestore.cache.manifest import Fingerprint
from fusestore.errors import FusestoreError, NotFoundError
from fusestore.fuse.manifest import FusionPlan
from fusestore.storage.location import Location
from fusestore.store.artifact_files import FINGERPRINT_FILE, MANIFEST_FILE
from fusestore.store.receipts import ShardPlan

_SHARD_RECEIPT = re.compile(r"(\d{6,})\.json")


def _shards_of_cache(folder: Location) -> ShardPlan:
    return Fingerprint.load(folder / FINGERPRINT_FILE).plan


def _shards_of_alignment(folder: Location) -> ShardPlan:
    return AlignmentFingerprint.load(folder / FINGERPRINT_FILE).plan


def _shards_of_fused(folder: Location) -> ShardPlan:
    plan = FusionPlan.load(folder / FINGERPRINT_FILE)
    return ShardPlan(plan.num_tokens, plan.recipe.rows_per_shard)


_SHARDS: dict[str, Callable[[Location], ShardPlan]] = {
    "cache": _shards_of_cache,
    "alignment": _shards_of_alignment,
    "fused": _shards_of_fused,
}


@dataclass(frozen=True)
class Job:
    """One command for several workers.

    Attributes:
        arguments: the command line after `fusestore`, without the options of the executor.
        kind: of the artifact that the command makes: `cache`, `alignment` or `fused`; `store` for
            a command that checks one.
        folder: of the artifact. It need not exist yet.
    """

    arguments: tuple[str, ...]
    kind: str
    folder: Location

    @property
    def title(self) -> str:
        """The artifact, as commands name it."""
        return f"{self.kind}/{self.folder.name}"

    def is_complete(self) -> bool:
        """Whether the artifact has its manifest."""
        return (self.folder / MANIFEST_FILE).exists()

    def rows_done(self) -> tuple[int, int] | None:
        """Rows of the shards with a receipt, by any writer, and all rows; None before the first.

        Receipts are counted by name, not read: this is progress, and no proof.
        """
        try:
            plan = _SHARDS[self.kind](self.folder)
            names = (self.folder / "receipts").list()
        except (NotFoundError, FusestoreError):
            return None
        shards = {int(match[1]) for name in names if (match := _SHARD_RECEIPT.fullmatch(name))}
        bounds = [plan.bounds(shard) for shard in shards if shard < len(plan)]
        return sum(stop - start for start, stop in bounds), plan.num_rows
