"""`IdOrder`: the numbering of token ids, which depends on the token before.

Small numbers compress. Ids are numbered by how often they are among a model's most likely next
tokens. Which tokens are likely depends on the last token: after "of" others than after a comma. So
tokens are grouped into a few classes, and each class has its own order of the most frequent ids.
The order is measured on a sample of the corpus before any shard is written, and stored with the
cache. `docs/format.md` says how a reader undoes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numba
import numpy as np
import numpy.typing as npt

from fusestore.errors import InvalidInputError

NUM_CLASSES = 64
"""C. With 16 the ids take 2 % more; each class costs about a kilobyte."""

MAX_HEAD = 4096
"""H: ids that each class orders. Four times as many save another 0.1 %."""

ROUNDS = 3
"""Rounds of assigning tokens to classes; three more save at most another 0.2 %."""

PRIOR_ENTRIES = 500.0
"""Weight, in entries, of the order of all classes in the order of each class."""

CORPUS_WEIGHT = 0.5
"""Weight of a token of the corpus, relative to an entry of the sample."""


@dataclass(frozen=True)
class IdOrder:
    """The numbering of V token ids in C classes of tokens.

    Attributes:
        rank_to_id: int32 [V], a permutation: all ids, the most frequent first.
        token_class: uint16 [V]: the class of each token that a row may come after.
        class_order: uint16 [C, H]: for each class a permutation of the ranks 0 to H − 1.
    """

    rank_to_id: npt.NDArray[np.int32]
    token_class: npt.NDArray[np.uint16]
    class_order: npt.NDArray[np.uint16]

    def __post_init__(self) -> None:
        if not _is_permutation(self.rank_to_id):
            raise InvalidInputError(
                f"rank_to_id must hold each id from 0 to {len(self.rank_to_id) - 1} exactly "
                "once; it does not."
            )
        vocab_size, (classes, head) = len(self.rank_to_id), self.class_order.shape
        if len(self.token_class) != vocab_size or head > vocab_size:
            raise InvalidInputError(
                f"Classes of {len(self.token_class)} tokens and an order of {head} ids do not fit "
                f"a vocabulary of {vocab_size}."
            )
        if int(self.token_class.max()) >= classes:
            raise InvalidInputError(
                f"token_class holds class {self.token_class.max()}; there are {classes}."
            )
        for number, order in enumerate(self.class_order):
            if not _is_permutation(order):
                raise InvalidInputError(
                    f"class_order of class {number} must hold each rank from 0 to {head - 1} "
                    "exactly once; it does not."
                )

    @property
    def vocab_size(self) -> int:
        """V."""
        return len(self.rank_to_id)

    @property
    def head(self) -> int:
        """H: numbers below it stand for another id in each class."""
        return int(self.class_order.shape[1])

    @cached_property
    def table(self) -> npt.NDArray[np.int32] | npt.NDArray[np.uint16]:
        """Int [C · H + V]: the ids of each class's numbers below H, then `rank_to_id`.

        Number n after a token of class c is at c · H + n where n is below H, else at C · H + n.
        In 16 bits if they suffice, so that more of it fits into a processor's cache.
        """
        ids = np.concatenate([self.rank_to_id[self.class_order].reshape(-1), self.rank_to_id])
        return ids.astype(np.uint16) if self.vocab_size <= 2**16 else ids

    @cached_property
    def id_to_rank(self) -> npt.NDArray[np.uint32]:
        """uint32 [V]: inverse of `rank_to_id`."""
        return np.argsort(self.rank_to_id).astype(np.uint32)

    @cached_property
    def class_numbers(self) -> npt.NDArray[np.uint32]:
        """uint32 [C, H]: inverse of each class's order: the number of each rank below H."""
        return np.argsort(self.class_order, axis=1).astype(np.uint32)


def _is_permutation(values: npt.NDArray[np.int32] | npt.NDArray[np.uint16]) -> bool:
    """Whether each of 0..n-1 occurs exactly once."""
    size = len(values)
    if size == 0 or values.min() < 0 or values.max() >= size:
        return False
    return bool(np.all(np.bincount(values, minlength=size) == 1))


def learn_order(
    vocab_size: int,
    corpus_ids: npt.NDArray[np.int32],
    row_tokens: npt.NDArray[np.int32],
    row_ids: npt.NDArray[np.int32],
    present: npt.NDArray[np.bool_],
) -> IdOrder:
    """The order of ids that suits a sample of rows.

    Tokens are clustered by their successors, as in Lloyd's algorithm with the code length as the
    distance: a class is the distribution of the entries after its tokens, and a token goes to the
    class that codes its successors best. These are the entries of its rows in the sample, and the
    tokens that follow it in the corpus.

    Args:
        vocab_size: V, above every id.
        corpus_ids: int32 [T], the tokens of the corpus in order.
        row_tokens: int32 [n]: the token before each row of the sample.
        row_ids: int32 [n, k]: the ids of the sample's entries.
        present: bool [n, k]: whether there is an entry.

    Returns:
        The order. Equal input gives an equal order.

    Raises:
        InvalidInputError: an id outside the vocabulary.
    """
    largest = max(int(ids.max()) for ids in (corpus_ids, row_tokens, row_ids) if ids.size)
    smallest = int(corpus_ids.min(initial=0))
    if largest >= vocab_size or smallest < 0:
        wrong = smallest if smallest < 0 else largest
        raise InvalidInputError(
            f"Token id {wrong} is outside the model's vocabulary of {vocab_size}. "
            "The tokenizer does not belong to this model."
        )
    counts = np.bincount(row_ids[present], minlength=vocab_size).astype(np.float64)
    counts += CORPUS_WEIGHT * _counts(corpus_ids, vocab_size)
    rank_to_id = np.argsort(-counts, kind="stable").astype(np.int32)
    head = min(MAX_HEAD, vocab_size)
    # −1 marks absent entries and those beyond the head, which are ignored.
    head_rank = np.full(vocab_size, -1, np.int32)
    head_rank[rank_to_id[:head]] = np.arange(head, dtype=np.int32)
    ranks = np.where(present, head_rank[row_ids], -1)
    prior = counts[rank_to_id[:head]] + 0.01
    prior *= PRIOR_ENTRIES / prior.sum()
    token_class = _first_classes(row_tokens, vocab_size)
    seen = prior + _class_counts(token_class[row_tokens], ranks, NUM_CLASSES, head)
    for _ in range(ROUNDS):
        bits = -np.log2(seen / seen.sum(axis=1, keepdims=True)).T.copy()
        token_class = _assign(token_class, bits, row_tokens, ranks, corpus_ids, head_rank)
        seen = prior + _class_counts(token_class[row_tokens], ranks, NUM_CLASSES, head)
    class_order = np.argsort(-seen, axis=1, kind="stable").astype(np.uint16)
    return IdOrder(rank_to_id, token_class, class_order)


def _first_classes(row_tokens: npt.NDArray[np.int32], vocab_size: int) -> npt.NDArray[np.uint16]:
    """uint16 [V]: one class for each of the most frequent tokens, the last class for all others."""
    counts = np.bincount(row_tokens, minlength=vocab_size)
    frequent = np.argsort(-counts, kind="stable")[: NUM_CLASSES - 1]
    token_class = np.full(vocab_size, NUM_CLASSES - 1, np.uint16)
    token_class[frequent] = np.arange(len(frequent))
    return token_class


@numba.njit(cache=True, nogil=True)
def _counts(ids: npt.NDArray[np.int32], vocab_size: int) -> npt.NDArray[np.int64]:
    """int64 [V]: how often each id occurs; `np.bincount` copies all ids, which are many."""
    counts = np.zeros(vocab_size, np.int64)
    for token in ids:
        counts[token] += 1
    return counts


@numba.njit(cache=True, nogil=True)
def _class_counts(
    row_class: npt.NDArray[np.uint16],
    ranks: npt.NDArray[np.int32],
    num_classes: int,
    head: int,
) -> npt.NDArray[np.float64]:
    """float64 [C, H]: entries of each rank after tokens of each class."""
    counts = np.zeros((num_classes, head))
    for row in range(len(ranks)):
        for rank in ranks[row]:
            if rank >= 0:
                counts[row_class[row], rank] += 1.0
    return counts


@numba.njit(cache=True, nogil=True)
def _assign(
    token_class: npt.NDArray[np.uint16],
    bits: npt.NDArray[np.float64],
    row_tokens: npt.NDArray[np.int32],
    ranks: npt.NDArray[np.int32],
    corpus_ids: npt.NDArray[np.int32],
    head_rank: npt.NDArray[np.int32],
) -> npt.NDArray[np.uint16]:
    """uint16 [V]: the class with the shortest code for each token; without data, the old class."""
    cost = np.zeros((len(token_class), bits.shape[1]))
    for row in range(len(ranks)):
        for rank in ranks[row]:
            if rank >= 0:
                cost[row_tokens[row]] += bits[rank]
    for i in range(len(corpus_ids) - 1):
        rank = head_rank[corpus_ids[i + 1]]
        if rank >= 0:
            cost[corpus_ids[i]] += bits[rank]
    assigned = token_class.copy()
    for token in range(len(assigned)):
        if cost[token, 0] > 0.0:
            assigned[token] = np.argmin(cost[token])
    return assigned
