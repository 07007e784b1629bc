"""The public functions of alignment: from two tokenizers to Polars tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from fusestore.align.kinds import ALIGNMENT_KINDS, AlignmentMethod, MapMethod, TieBreak
from fusestore.align.tokens.pairing import align_table
from fusestore.align.vocabulary.statistics import count_pairs
from fusestore.align.vocabulary.vocabulary_map import map_vocabulary
from fusestore.models.spec import may_be_hub_id
from fusestore.models.target import open_tokenizer
from fusestore.storage.packages import SCHEME
from fusestore.tokenizers.tokenizer import Tokenizer, as_tokenizer


def vocabulary_map(
    source_tokenizer: Any,  # noqa: ANN401 - Hugging Face tokenizers share no public base
    target_tokenizer: Any,  # noqa: ANN401
    method: MapMethod = "prefix",
    *,
    tie_break: TieBreak = "prefix",
    texts: Sequence[str] | None = None,
) -> pl.DataFrame:
    """Map every source token id to the target token that stands for the same or the nearest text.

    Args:
        source_tokenizer: a fast Hugging Face tokenizer, a `tiktoken.Encoding`, a
            `sentencepiece.SentencePieceProcessor`, a folder or file, a hub id (with `@REVISION` or
            without), `package:NAME` (the model of a package), `package:NAME/PATH`, or our
            `Tokenizer`.
        target_tokenizer: the same; swap the two for the other direction.
        method: `prefix` (the first target token of the text), `mined` (minimum edit distance,
            FuseLLM section 3.3), `exact`, or `statistical` (tokens that begin together in `texts`,
            after FuseChat).
        tie_break: of equally near tokens, take that with the longest common `prefix` or the
            `first`.
        texts: documents in which `statistical` counts tokens.

    Returns:
        One row per source id: source_id int32, target_id int32 or null, distance int32 in
        characters or null, kind string (none, exact, mined, prefix, role, byte, statistical).

    Raises:
        IncompatibleError: a slow tokenizer, which gives no end offsets.
        InvalidInputError: an unknown method or tie break, `statistical` without texts, or texts
            for another method.
    """
    source, target = _tokenizer(source_tokenizer), _tokenizer(target_tokenizer)
    counts = None
    if texts is not None:
        counts = count_pairs(source.encode(texts, False), target.encode(texts, False))
    table = map_vocabulary(
        source.vocabulary, target.vocabulary, method, tie_break, counts=counts
    ).to_polars()
    return table.with_columns(pl.col("kind").cast(pl.String))


def token_alignment(
    text: str,
    source_tokenizer: Any,  # noqa: ANN401
    target_tokenizer: Any,  # noqa: ANN401
    method: AlignmentMethod = "span",
) -> pl.DataFrame:
    """Align the two tokenizations of a text, without special tokens.

    Args:
        text: one document.
        source_tokenizer: in the forms that `vocabulary_map` takes.
        target_tokenizer: the same.
        method: `span`, `hybrid`, `mined`, `anchored` or `exact`.

    Returns:
        One row per target token: target_pos int32, source_pos int32 or null, kind string (span,
        inside, mined, none). Row `source_pos` of the source may supervise row `target_pos` of the
        target: both predict what follows the token at that position, for `inside` once the
        source's row is conditioned on the bytes since.

    Raises:
        IncompatibleError: a slow tokenizer, which gives no end offsets.
        InvalidInputError: an unknown method.
    """
    source, target = _tokenizer(source_tokenizer), _tokenizer(target_tokenizer)
    position, kind = align_table(
        source.encode([text], add_bos=False),
        target.encode([text], add_bos=False),
        source.vocabulary,
        target.vocabulary,
        method,
    )
    return pl.DataFrame(
        {
            "target_pos": np.arange(len(position), dtype=np.int32),
            "source_pos": pl.Series(position, dtype=pl.Int32).replace(-1, None),
            "kind": pl.Series(ALIGNMENT_KINDS, dtype=pl.String).gather(kind),
        }
    )


def _tokenizer(tokenizer: Any) -> Tokenizer:  # noqa: ANN401
    """The tokenizer; `load_tokenizer` itself knows files and folders, but no models of packages."""
    if isinstance(tokenizer, str) and (tokenizer.startswith(SCHEME) or _names_revision(tokenizer)):
        return open_tokenizer(tokenizer)
    return as_tokenizer(tokenizer)


def _names_revision(spec: str) -> bool:
    return "@" in spec and may_be_hub_id(spec) and not Path(spec).exists()
