"""Checks that fused datasets can be mixed, and the digest and seeds of a mixture."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

from fusestore.errors import IncompatibleError, InvalidInputError
from fusestore.store.manifest import canonical_json, digest_bytes


class Mixable(Protocol):
    """A fused dataset, mapped or streamed."""

    digest: str
    window_length: int
    vocab_size: int
    top_k: int

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def target(self) -> str:
        """Digest of the target's tokenizer."""
        ...


def check_mixable(datasets: Sequence[Mixable]) -> None:
    """Check that windows of all datasets fit into one batch, and that all datasets differ.

    Raises:
        IncompatibleError: target, vocabulary, window length or top_k differ.
        InvalidInputError: no datasets, or the same dataset twice.
    """
    if not datasets:
        raise InvalidInputError("A mixture needs at least one fused dataset.")
    first = datasets[0]
    names: dict[str, str] = {}
    for dataset in datasets:
        for field, meaning in _COMMON.items():
            expected, actual = getattr(first, field), getattr(dataset, field)
            if expected != actual:
                raise IncompatibleError(
                    f"Fused datasets {first.name} and {dataset.name} cannot be mixed: {meaning} is "
                    f"{expected} in the first and {actual} in the second. Fuse one of them again "
                    "like the other."
                )
        if dataset.digest in names:
            raise InvalidInputError(
                f"{names[dataset.digest]} and {dataset.name} are the same fused dataset. Name it "
                "once, with the weight of both."
            )
        names[dataset.digest] = dataset.name


def own_seed(digest: str, seed: int) -> int:
    """The seed of a dataset's order in a mixture of this seed: 63 bits."""
    if not 0 <= seed < 2**63:
        raise InvalidInputError(f"seed={seed}: expected 0 or more, and below 2**63.")
    seed_digest = hashlib.sha256(f"{digest} {seed}".encode()).digest()
    return int.from_bytes(seed_digest[:8], "little") >> 1


def mixture_digest(datasets: Sequence[Mixable], weights: Sequence[int]) -> str:
    """SHA-256 of the datasets' digests and the weights, in their order."""
    content = {"datasets": [each.digest for each in datasets], "weights": list(weights)}
    return digest_bytes(canonical_json(content))


_COMMON = {
    "target": "the digest of the target's tokenizer",
    "vocab_size": "the number of the target's tokens",
    "window_length": "window_length",
    "top_k": "top_k",
}
