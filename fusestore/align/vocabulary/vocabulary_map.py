"""Vocabulary maps: for every source token id the target token that stands for the same text.

FuseLLM (arXiv 2401.10491) section 3.3 maps tokens by minimum edit distance ("MinED") between the
tokens' texts. Tokens are compared by the bytes they stand for, without the marks that tokenizers
write for a space or a cut character.

    special   by role (eos, bos, unk, pad), then to the special token of the same content, else none
    byte      to the target token that stands for exactly that byte, else none
    unused    none; so are tokens with no text
    text      to the target token of the same bytes; else, by method,
              `exact`   none
              `mined`   the text token of least edit distance over characters
              `prefix`  the longest target token that the source token's text begins with
              `statistical`  the token that most often begins at its position in a corpus
                        (`statistics.py`); as `mined` if the corpus does not hold it
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fusestore.align.edit_distance import common_prefix, text_distances, text_of
from fusestore.align.kinds import (
    MAP_BYTE,
    MAP_EXACT,
    MAP_KINDS,
    MAP_METHODS,
    MAP_MINED,
    MAP_NONE,
    MAP_PREFIX,
    MAP_ROLE,
    MAP_STATISTICAL,
    TIE_BREAKS,
    MapMethod,
    TieBreak,
)
from fusestore.align.vocabulary.nearest import nearest
from fusestore.align.vocabulary.statistics import PairCounts
from fusestore.errors import IncompatibleError, InvalidInputError
from fusestore.progress import Progress, ignore_progress
from fusestore.tokenizers.vocabulary import Role, Vocabulary

if TYPE_CHECKING:
    import polars as pl

_ROLES: tuple[Role, ...] = ("eos", "bos", "unk", "pad")
"""A token with several roles is mapped by the first: eos, because a prediction of it ends text."""


@dataclass(frozen=True)
class VocabularyMap:
    """One row per source token id.

    Attributes:
        source_digest: digest of the source tokenizer.
        target_digest: digest of the target tokenizer.
        method: how text tokens without an equal target token were mapped.
        tie_break: how ties of `mined` were broken.
        target_id: int32 [V_source], −1 for none.
        distance: int32 [V_source], edit distance in characters, −1 without a target token.
        kind: uint8 [V_source], index into `MAP_KINDS`.
    """

    source_digest: str
    target_digest: str
    method: MapMethod
    tie_break: TieBreak
    target_id: npt.NDArray[np.int32]
    distance: npt.NDArray[np.int32]
    kind: npt.NDArray[np.uint8]

    @cached_property
    def digest(self) -> str:
        """SHA-256, hexadecimal, of the tokenizers, the settings and every row."""
        state = hashlib.sha256()
        for text in (self.source_digest, self.target_digest, self.method, self.tie_break):
            state.update(text.encode() + b"\0")
        for values, dtype in ((self.target_id, "<i4"), (self.distance, "<i4"), (self.kind, "u1")):
            state.update(np.ascontiguousarray(values, dtype=dtype).data)
        return state.hexdigest()

    def to_polars(self) -> pl.DataFrame:
        """Columns source_id int32, target_id int32 or null, distance int32 or null, kind enum."""
        import polars as pl

        mapped = pl.Series(self.target_id >= 0)
        return pl.DataFrame(
            {
                "source_id": np.arange(len(self.target_id), dtype=np.int32),
                "target_id": self.target_id,
                "distance": self.distance,
                "kind": pl.Series(MAP_KINDS, dtype=pl.Enum(MAP_KINDS)).gather(self.kind),
            }
        ).with_columns(
            pl.when(mapped).then(pl.col("target_id")).alias("target_id"),
            pl.when(mapped).then(pl.col("distance")).alias("distance"),
        )


def map_vocabulary(
    source: Vocabulary,
    target: Vocabulary,
    method: MapMethod = "prefix",
    tie_break: TieBreak = "prefix",
    progress: Progress = ignore_progress,
    counts: PairCounts | None = None,
) -> VocabularyMap:
    """Map every source token id to a target token id.

    Args:
        source: the vocabulary to map from.
        target: the vocabulary to map to; swap the two for the other direction.
        method: `exact`, `mined`, `prefix` or `statistical`, see the module's docstring.
        tie_break: of several nearest tokens, `prefix` takes that with the longest common prefix,
            then the lowest id; `first` takes the lowest id, like the paper's code with a vocabulary
            in order of ids.
        progress: counts the source tokens that have no equal target token.
        counts: for `statistical`, the pairs of a corpus.

    Raises:
        InvalidInputError: an unknown method or tie break, `statistical` without counts, or counts
            for another method.
        IncompatibleError: the counts are of other vocabularies.
    """
    if method not in MAP_METHODS:
        raise InvalidInputError(
            f"Vocabulary map method {method!r} is unknown; use one of {', '.join(MAP_METHODS)}."
        )
    if tie_break not in TIE_BREAKS:
        raise InvalidInputError(
            f"Tie break {tie_break!r} is unknown; use one of {', '.join(TIE_BREAKS)}."
        )
    _check_counts(source, target, method, counts)
    result = VocabularyMap(
        source.tokenizer_digest,
        target.tokenizer_digest,
        method,
        tie_break,
        np.full(len(source), -1, np.int32),
        np.full(len(source), -1, np.int32),
        np.full(len(source), MAP_NONE, np.uint8),
    )
    _map_special(source, target, result)
    unmatched = _map_equal(source, target, result)
    if method in ("mined", "statistical"):
        _map_mined(source, target, unmatched, result, progress)
    elif method == "prefix":
        _map_prefix(source, target, unmatched, result)
    if counts is not None:
        _map_counted(source, target, unmatched, result, counts)
    return result


def _check_counts(
    source: Vocabulary, target: Vocabulary, method: MapMethod, counts: PairCounts | None
) -> None:
    if counts is None:
        if method == "statistical":
            raise InvalidInputError(
                "Vocabulary map method 'statistical' needs counts of a corpus (texts). Give texts, "
                "or use 'mined'."
            )
        return
    if method != "statistical":
        raise InvalidInputError(
            f"Vocabulary map method {method!r} uses no counts; leave them out or use 'statistical'."
        )
    largest = [int(ids.max(initial=0)) for ids in (counts.source_ids, counts.target_ids)]
    if largest[0] >= len(source) or largest[1] >= len(target):
        raise IncompatibleError(
            f"The counts have ids up to {largest[0]} and {largest[1]}, but the vocabularies have "
            f"{len(source):,} and {len(target):,} ids. Count the pairs with these two tokenizers."
        )


def _set(result: VocabularyMap, source_id: int, target_id: int, distance: int, kind: int) -> None:
    result.target_id[source_id] = target_id
    result.distance[source_id] = distance
    result.kind[source_id] = kind


def _map_special(source: Vocabulary, target: Vocabulary, result: VocabularyMap) -> None:
    by_content: dict[bytes, int] = {}
    for target_id, (token, kind) in enumerate(zip(target.token_bytes, target.kinds, strict=True)):
        if kind == "special":
            by_content.setdefault(token, target_id)
    for source_id, (token, kind) in enumerate(zip(source.token_bytes, source.kinds, strict=True)):
        if kind == "special" and token in by_content:
            _set(result, source_id, by_content[token], 0, MAP_EXACT)
    # Roles are set last and in reverse order: a role overrides content, and the first role others.
    for role in reversed(_ROLES):
        source_role, target_role = source.role(role), target.role(role)
        if source_role is not None and target_role is not None:
            _set(result, source_role, target_role, 0, MAP_ROLE)


def _equal_tokens(target: Vocabulary) -> dict[bytes, int]:
    """Bytes → target id; text tokens precede byte tokens, and lower ids higher ids."""
    target_ids: dict[bytes, int] = {}
    for kind in ("text", "byte"):
        for target_id, token in enumerate(target.token_bytes):
            if target.kinds[target_id] == kind and token:
                target_ids.setdefault(token, target_id)
    return target_ids


def _map_equal(source: Vocabulary, target: Vocabulary, result: VocabularyMap) -> list[int]:
    """Map byte tokens and tokens with an equal target token; returns the other text tokens."""
    equal = _equal_tokens(target)
    unmatched = []
    for source_id, (token, kind) in enumerate(zip(source.token_bytes, source.kinds, strict=True)):
        if kind not in ("text", "byte") or not token or result.kind[source_id] == MAP_ROLE:
            continue
        if token in equal:
            _set(result, source_id, equal[token], 0, MAP_BYTE if kind == "byte" else MAP_EXACT)
        elif kind == "text":
            unmatched.append(source_id)
    return unmatched


def _map_mined(
    source: Vocabulary,
    target: Vocabulary,
    unmatched: list[int],
    result: VocabularyMap,
    progress: Progress,
) -> None:
    # Byte-fallback tokens are no candidates: each stands for a byte of a character.
    candidates: dict[bytes, int] = {}
    for target_id, (token, kind) in enumerate(zip(target.token_bytes, target.kinds, strict=True)):
        if kind == "text" and token:
            candidates.setdefault(token, target_id)
    if not candidates or not unmatched:
        return
    index, distance = nearest(
        [text_of(source.token_bytes[i]) for i in unmatched],
        [text_of(token) for token in candidates],
        prefer_prefix=result.tie_break == "prefix",
        progress=progress,
    )
    target_ids = np.fromiter(candidates.values(), np.int32, len(candidates))
    result.target_id[unmatched] = target_ids[index]
    result.distance[unmatched] = distance
    result.kind[unmatched] = MAP_MINED


def _map_prefix(
    source: Vocabulary, target: Vocabulary, unmatched: list[int], result: VocabularyMap
) -> None:
    # Includes byte tokens: with byte fallback, an unknown character begins with a byte token.
    equal = _equal_tokens(target)
    longest = max(map(len, equal), default=0)
    prefixes: list[tuple[int, bytes]] = []
    for source_id in unmatched:
        token = source.token_bytes[source_id]
        for length in range(min(len(token), longest), 0, -1):
            if token[:length] in equal:
                prefixes.append((source_id, token[:length]))
                break
    distances = text_distances(
        [text_of(source.token_bytes[i]) for i, _ in prefixes], [text_of(p) for _, p in prefixes]
    )
    for (source_id, prefix), distance in zip(prefixes, distances, strict=True):
        _set(result, source_id, equal[prefix], int(distance), MAP_PREFIX)


def _map_counted(
    source: Vocabulary,
    target: Vocabulary,
    unmatched: list[int],
    result: VocabularyMap,
    counts: PairCounts,
) -> None:
    """Map tokens without an equal by their highest count; ties are broken as those of `mined`."""
    has_text = np.array([kind in ("text", "byte") for kind in target.kinds])
    is_unmatched = np.zeros(len(source), np.bool_)
    is_unmatched[unmatched] = True
    most = np.zeros(len(source), np.int64)
    usable = is_unmatched[counts.source_ids] & has_text[counts.target_ids]

    np.maximum.at(most, counts.source_ids[usable], counts.counts[usable])
    usable &= counts.counts == most[counts.source_ids]
    source_ids, target_ids = counts.source_ids[usable], counts.target_ids[usable]
    left = [text_of(source.token_bytes[i]) for i in source_ids]
    right = [text_of(target.token_bytes[i]) for i in target_ids]
    distance = text_distances(left, right)
    prefix = np.zeros(len(left), np.int64)
    if result.tie_break == "prefix":
        prefix[:] = [common_prefix(*pair) for pair in zip(left, right, strict=True)]
    order = np.lexsort((target_ids, -prefix, distance, source_ids))
    chosen, first = np.unique(source_ids[order], return_index=True)
    result.target_id[chosen] = target_ids[order[first]]
    result.distance[chosen] = distance[order[first]]
    result.kind[chosen] = MAP_STATISTICAL
