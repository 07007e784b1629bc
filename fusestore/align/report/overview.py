"""Overview of an alignment: coverage of each method, and the unmatched tokens."""

from __future__ import annotations

import polars as pl

from fusestore.align.manifest import MethodSample
from fusestore.align.report.columns import shown_text
from fusestore.align.report.unmatched import read_unmatched
from fusestore.align.stored import Alignment
from fusestore.store.artifact_types import View
from fusestore.store.manifest import Frozen
from fusestore.store.shown_table import ShownTable, percent

_UNMATCHED_SHOWN = 8


class UnmatchedTokens(Frozen):
    """One token id with occurrences that are in no pair.

    Attributes:
        token_id: its id.
        text: its text; bytes that are no UTF-8 escaped.
        unmatched: occurrences without a partner.
        total: all occurrences.
    """

    token_id: int
    text: str
    unmatched: int
    total: int


class UnmatchedSides(Frozen):
    """The most frequent unmatched tokens of both sides, by falling number of these.

    Attributes:
        target: target tokens without a source row.
        source: source tokens with a row that supervises nothing.
    """

    target: tuple[UnmatchedTokens, ...]
    source: tuple[UnmatchedTokens, ...]


class AlignmentSummary(Frozen):
    """Coverage, counts, the comparison of methods, and the most frequent unmatched tokens.

    Attributes:
        coverage: share of target tokens, in [0, 1], by alignment kind.
        counts: target tokens by alignment kind.
        unused_source_tokens: source tokens with a row that supervises nothing.
        sample: the methods compared on the same documents.
        unmatched: of either side.
    """

    coverage: dict[str, float]
    counts: dict[str, int]
    unused_source_tokens: int
    sample: MethodSample
    unmatched: UnmatchedSides


class AlignedCache(AlignmentSummary):
    """What `fusestore align --json` prints.

    Attributes:
        cache: name of the source's cache.
        alignment: name of the alignment.
        built: whether it was made by this command.
    """

    cache: str
    alignment: str
    built: bool


def alignment_view(alignment: Alignment, num_unmatched: int = _UNMATCHED_SHOWN) -> View:
    """The output of `align` and `show`.

    Args:
        alignment: the alignment.
        num_unmatched: most frequent unmatched tokens per side in the JSON content.
    """
    summary = alignment_summary(alignment, num_unmatched)
    manifest, sample = alignment.manifest, alignment.manifest.sample
    total = max(sample.num_tokens, 1)
    tables = [
        ShownTable(
            f"Methods on {sample.num_documents:,} documents with {sample.num_tokens:,} target "
            "tokens",
            ["method", "aligned", *(f"as {other}" for other in sample.same)],
            [
                [method, percent(sample.aligned[method] / total, 2)]
                + [percent(count / total, 2) for count in same.values()]
                for method, same in sample.same.items()
            ],
        )
    ]
    titles = {
        "target": f"{manifest.counts['none']:,} target tokens have no source row; most often",
        "source": f"{manifest.unused_source_tokens:,} source rows supervise nothing; most often "
        "those after",
    }
    tables += [
        ShownTable(
            titles[side],
            ["token", "id", "times", "of"],
            [
                [
                    shown_text(row.text.encode()),
                    str(row.token_id),
                    f"{row.unmatched:,}",
                    f"{row.total:,}",
                ]
                for row in rows
            ],
        )
        for side, rows in alignment_summary(alignment, _UNMATCHED_SHOWN).unmatched
        if rows
    ]
    return View(summary.model_dump(mode="json"), tables)


def alignment_summary(alignment: Alignment, num_unmatched: int) -> AlignmentSummary:
    """The figures of an alignment, with so many unmatched tokens of either side."""
    manifest = alignment.manifest
    table = read_unmatched(alignment).drop("bytes")

    def most_frequent(side: str) -> tuple[UnmatchedTokens, ...]:
        rows = table.filter(pl.col("side") == side).drop("side").head(num_unmatched)
        return tuple(UnmatchedTokens(**row) for row in rows.to_dicts())

    return AlignmentSummary(
        coverage=alignment.coverage,
        counts=manifest.counts,
        unused_source_tokens=manifest.unused_source_tokens,
        sample=manifest.sample,
        unmatched=UnmatchedSides(target=most_frequent("target"), source=most_frequent("source")),
    )
