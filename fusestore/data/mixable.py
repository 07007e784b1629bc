"""What fused datasets must have in common to be mixed."""

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
        """Digest of the tokenizer whose tokens it holds."""
        ...


def check_mixable(datasets: Sequence[Mixable]) -> None:
    """See that windows of all datasets fit into one batch, and none is there twice.

    Raises:
        IncompatibleError: they differ.
        InvalidInputError: there are none, or one is there twice.
    """
    if not datasets:
        raise InvalidInputError("A mixture needs at least one fused dataset.")
    first = datasets[0]
    names: dict[str, str] = {}
    for dataset in datasets:
        for field, meaning in _COMMON.items():
            expected, found = getattr(first, field), getattr(dataset, field)
            if expected != found:
                raise IncompatibleError(
                    f"Fused datasets {first.name} and {dataset.name} cannot be mixed: {meaning} is "
                    f"{expected} in the first and {found} in the second. Fuse one of them again "
                    "like the other."
                )
        if dataset.digest in names:
            raise InvalidInputError(
                f"{names[dataset.digest]} and {dataset.name} are the same fused dataset. Name it "
                "once, with the weight of both."
            )
        names[dataset.digest] = dataset.name


def own_seed(digest: str, seed: int) -> int:
    """The seed of a dataset's own order in a mixture of this seed: 63 bits."""
    if not 0 <= seed < 2**63:
        raise InvalidInputError(f"seed={seed}: expected 0 or more, and below 2**63.")
    found = hashlib.sha256(f"{digest} {seed}".encode()).digest()
    return int.from_bytes(found[:8], "little") >> 1


def mixture_digest(datasets: Sequence[Mixable], weights: Sequence[int]) -> str:
    """SHA-256 of the datasets' digests and the weights, in the order given."""
    content = {"datasets": [each.digest for each in datasets], "weights": list(weights)}
    return digest_bytes(canonical_json(content))


_COMMON = {
    "target": "the digest of the target's tokenizer",
    "vocab_size": "the number of the target's tokens",
    "window_length": "window_length",
    "top_k": "top_k",
}
