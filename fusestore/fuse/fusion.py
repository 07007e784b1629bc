"""`Fusion`: a recipe with its inputs, checked to belong together.

In memory are one offset per document of the corpus and the split's document indices. Tokens and
rows are read when they are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fusestore.errors import IncompatibleError, InvalidInputError, NotFoundError
from fusestore.fuse.choices import LEARNED
from fusestore.fuse.fits.manifest import Fitted
from fusestore.fuse.inputs import SourceInput, check_same_tokens
from fusestore.fuse.packing import window_starts
from fusestore.fuse.recipe import Recipe
from fusestore.fuse.strategies import check_strategy
from fusestore.tokenizers.supervision import Supervision
from fusestore.tokenizers.token_table import TokenReader, TokenTable, read_documents

_ONE_SOURCE_A_POSITION = frozenset({"mince", "single"})
"""Strategies that never mix."""


@dataclass(frozen=True)
class Fusion:
    """A checked fusion of one split, T target positions of D documents in all.

    Attributes:
        recipe: the whole recipe.
        sources: in the recipe's order.
        maps: int32 [V_src] per source.
        target_cache: the target's own rows, exactly when `unaligned = "target"`.
        tokens: the target's tokens of the whole corpus.
        tokens_digest: identifies them.
        documents: int64 [D] the split's documents, as indices into the corpus.
        offsets: int64 [D + 1]: the split's document i is positions `[value[i], value[i + 1])`.
        vocab_size: tokens of the target.
        corpus_digest: of the corpus.
        fitted: the fit of a learned strategy.
        supervision: of the corpus, if it holds conversations.
    """

    recipe: Recipe
    sources: tuple[SourceInput, ...]
    maps: tuple[npt.NDArray[np.int32], ...]
    target_cache: SourceInput | None
    tokens: TokenReader
    tokens_digest: str
    documents: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    vocab_size: int
    corpus_digest: str
    fitted: Fitted | None = None
    supervision: Supervision | None = None

    @property
    def num_tokens(self) -> int:
        """Target positions of the split, T."""
        return int(self.offsets[-1])

    @cached_property
    def window_starts(self) -> npt.NDArray[np.int64]:
        """int64 [W + 1]: window i is positions `[value[i], value[i + 1])`.

        Raises:
            InvalidInputError: packing is `whole`, and a document is longer than a window.
        """
        recipe = self.recipe
        if recipe.packing == "whole":
            lengths = np.diff(self.offsets)
            longest = int(np.argmax(lengths))
            if lengths[longest] > recipe.window_length:
                raise InvalidInputError(
                    f"Document {self.documents[longest]} of corpus {recipe.corpus!r} has "
                    f"{lengths[longest]:,} tokens of the target, more than a window of "
                    f"{recipe.window_length:,}, and packing 'whole' cuts no document. Set "
                    f"window_length to {lengths[longest]:,}, build the corpus with max_length "
                    f"{recipe.window_length:,} (conversations are cut before turns of the user), "
                    "or set packing to 'stream' or 'document', which cut documents anywhere."
                )
        return window_starts(self.offsets, recipe.window_length, recipe.packing or "stream")

    @property
    def sampled(self) -> bool:
        """Whether any source's rows are samples."""
        sources = (*self.sources, *((self.target_cache,) if self.target_cache else ()))
        return any(source.draws for source in sources)

    def read(self, first: int, stop: int) -> TokenTable:
        """The target's tokens of the split's documents `[first, stop)`, those that count marked.

        Raises:
            IncompatibleError: they are not of the target's vocabulary.
        """
        documents = self.documents[first:stop]
        table = read_documents(self.tokens, documents)
        largest = int(table.token_ids.max(initial=-1))
        if largest >= self.vocab_size or table.token_ids.min(initial=0) < 0:
            raise IncompatibleError(
                f"The target's tokens have ids from {table.token_ids.min()} to {largest}, but its "
                f"vocabulary has {self.vocab_size}."
            )
        return table if self.supervision is None else self.supervision.mark(table, documents)


def count_masked(fusion: Fusion) -> int:
    """Target positions after which no token that is trained on follows; 0 in a corpus of texts.

    Raises:
        IncompatibleError: see `Fusion.read`.
    """
    if fusion.supervision is None:
        return 0
    counted = 0
    for first in range(0, len(fusion.documents), _DOCUMENTS_AT_ONCE):
        stop = min(first + _DOCUMENTS_AT_ONCE, len(fusion.documents))
        counted += int(fusion.read(first, stop).is_counted.sum())
    return fusion.num_tokens - counted


_DOCUMENTS_AT_ONCE = 4096


def prepare(
    recipe: Recipe,
    sources: Sequence[SourceInput],
    *,
    target_tokens: TokenReader,
    tokens_digest: str,
    documents: npt.NDArray[np.int64],
    vocab_size: int,
    corpus_digest: str,
    target_cache: SourceInput | None = None,
    fitted: Fitted | None = None,
    supervision: Supervision | None = None,
) -> Fusion:
    """Check that recipe and inputs belong together.

    Args:
        recipe: the whole recipe.
        sources: one for each of the recipe's sources, in any order.
        target_tokens: the target's tokens of the whole corpus.
        tokens_digest: identifies the target's tokens.
        documents: int64 [D] indices of the split's documents, in the order of the fused stream.
        vocab_size: tokens of the target (the width of its output).
        corpus_digest: of the corpus.
        target_cache: the target's own cache, for `unaligned = "target"`.
        fitted: the fit, for a learned strategy.
        supervision: of the corpus, if it holds conversations.

    Raises:
        NotFoundError: the recipe names a cache that is not among the sources.
        IncompatibleError: inputs of different corpora, tokenizers or targets.
        InvalidInputError: no such strategy, more entries than tokens, or an empty split.
    """
    check_strategy(recipe.strategy)
    if recipe.strategy in LEARNED and fitted is None:
        raise InvalidInputError(
            f"Strategy {recipe.strategy!r} is fitted from caches, but no fit was given. Find the "
            "inputs in a store, which fits it."
        )
    if recipe.top_k > vocab_size:
        raise InvalidInputError(
            f"top_k is {recipe.top_k}, but the target has {vocab_size} tokens; lower top_k."
        )
    by_name = {source.name: source for source in sources}
    names = [source.cache for source in recipe.sources]
    for name in names:
        if name not in by_name:
            raise NotFoundError(
                f"The recipe names source {name!r}, which was not given "
                f"(given are: {', '.join(sorted(by_name)) or 'none'}). Capture it with "
                f"`fusestore capture`, or remove it from the recipe."
            )
    ordered = tuple(by_name[name] for name in names)
    if recipe.target_cache is not None:
        if target_cache is None:
            raise NotFoundError(
                f"The recipe's unaligned policy needs the target's own cache "
                f"{recipe.target_cache!r}, which was not given."
            )
        if target_cache.target_id is not None or target_cache.alignment is not None:
            raise IncompatibleError(
                f"{target_cache.name!r} is given with a map or an alignment, so it is not the "
                "target's own cache."
            )
    else:
        target_cache = None
    everyone = (*ordered, *([target_cache] if target_cache else []))
    for source in everyone:
        _check_source(source, target_tokens, corpus_digest)
    if recipe.keep_label is None:
        sampled = any(source.draws for source in everyone)
        recipe = recipe.model_copy(update={"keep_label": not sampled})
    if recipe.packing is None:
        recipe = recipe.model_copy(update={"packing": "stream" if supervision is None else "whole"})
    _check_samples(recipe, ordered, target_cache)
    corpus_offsets = target_tokens.document_offsets
    num_documents = len(corpus_offsets) - 1
    if len(documents) and not 0 <= documents.min() <= documents.max() < num_documents:
        raise InvalidInputError(
            f"Documents of the split go from {documents.min()} to {documents.max()}, but the "
            f"corpus has {num_documents}."
        )
    lengths = np.diff(corpus_offsets)[documents]
    if lengths.sum() == 0:
        raise InvalidInputError(
            f"Split {recipe.split!r} of corpus {recipe.corpus!r} has no tokens; nothing to fuse."
        )
    fusion = Fusion(
        recipe,
        ordered,
        tuple(source.projection_map(vocab_size) for source in ordered),
        target_cache,
        target_tokens,
        tokens_digest,
        documents,
        np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        vocab_size,
        corpus_digest,
        fitted,
        supervision,
    )
    # Checking the first document with tokens finds a mistake before anything is written. The
    # others are checked when their shards are made.
    first = int(np.argmax(lengths > 0))
    tokens = fusion.read(first, first + 1)
    for source in everyone:
        if source.alignment is None:
            start, stop = corpus_offsets[documents[first] : documents[first] + 2]
            check_same_tokens(source, source.cache.read_tokens(start, stop)[0], tokens.token_ids)
    return fusion


def _check_source(source: SourceInput, target_tokens: TokenReader, corpus_digest: str) -> None:
    if source.corpus_digest != corpus_digest:
        raise IncompatibleError(
            f"Cache {source.name!r} was made from corpus {source.corpus_digest[:16]}, but the "
            f"fusion is over corpus {corpus_digest[:16]}. Capture it again over this corpus."
        )
    offsets, target_offsets = source.cache.document_offsets, target_tokens.document_offsets
    if len(offsets) != len(target_offsets):
        raise IncompatibleError(
            f"Cache {source.name!r} has {len(offsets) - 1} documents, the target's tokens "
            f"{len(target_offsets) - 1}: the segmentations differ. Use one corpus for all."
        )
    if source.alignment is None:
        check_same_tokens(source, offsets, target_offsets)


def _check_samples(
    recipe: Recipe, sources: Sequence[SourceInput], target_cache: SourceInput | None
) -> None:
    """Check that the recipe uses sampled rows only where they stay unbiased.

    Raises:
        IncompatibleError: the recipe scores labels by entries, or would cut entries off.
    """
    sampled = [source for source in sources if source.draws]
    if sampled and recipe.score == "aligned_ce":
        raise IncompatibleError(
            f"Score 'aligned_ce' reads the label's probability from a row's entries, but those of "
            f"cache {sampled[0].name!r} are {sampled[0].draws} draws: a label that was not drawn "
            "has a probability too. Use score 'bits_per_byte' or 'token_ce', which use the exact "
            "log-probabilities of labels that every cache keeps."
        )
    if recipe.keep_label and (sampled or (target_cache is not None and target_cache.draws)):
        raise IncompatibleError(
            "keep_label adds the exact probability of the next token to each row, but rows of a "
            "source are samples, which are unbiased only as they were drawn. Leave keep_label out, "
            "or set it to false."
        )
    needed = max((source.draws for source in sampled), default=0)
    if sampled and recipe.strategy not in _ONE_SOURCE_A_POSITION:
        # A mixture has the entries of all.
        needed = sum(source.rule.top_k for source in sources if source.rule is not None)
    if target_cache is not None and target_cache.draws:
        sampled.append(target_cache)
        needed = max(needed, target_cache.draws)
    for name in ("min_probability", "logprob_step"):
        if sampled and getattr(recipe, name) is not None:
            raise IncompatibleError(
                f"{name} is {getattr(recipe, name):g}, but the rows of "
                f"{', '.join(repr(source.name) for source in sampled)} are samples, which it would "
                f"bias. Leave {name} out."
            )
    if recipe.top_k < needed:
        raise IncompatibleError(
            f"top_k is {recipe.top_k}, but a fused position may have {needed} entries, and the "
            f"rows of {', '.join(repr(source.name) for source in sampled)} are samples: cutting "
            f"off their rarest entries would bias them. Set top_k to {needed}."
        )
