"""Overview of an alignment: coverage of each method, and the unmatched tokens."""

from __future__ import annotations

from typing import Any

import polars as pl

from fusestore.align.report.columns import shown_text
from fusestore.align.report.unmatched import read_unmatched
from fusestore.align.stored import Alignment
from fusestore.store.artifact_types import View
from fusestore.store.shown_table import ShownTable, percent

_UNMATCHED_SHOWN = 8


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
                    shown_text(row["text"].encode()),
                    str(row["token_id"]),
                    f"{row['unmatched']:,}",
                    f"{row['total']:,}",
                ]
                for row in rows
            ],
        )
        for side, rows in alignment_summary(alignment, _UNMATCHED_SHOWN)["unmatched"].items()
        if rows
    ]
    return View(summary, tables)


def alignment_summary(alignment: Alignment, num_unmatched: int) -> dict[str, Any]:
    """Coverage, counts, the comparison of methods, and the most frequent unmatched tokens."""
    manifest = alignment.manifest
    table = read_unmatched(alignment).drop("bytes")
    return {
        "coverage": alignment.coverage,
        "counts": manifest.counts,
        "unused_source_tokens": manifest.unused_source_tokens,
        "sample": manifest.sample.model_dump(),
        "unmatched": {
            side: table.filter(pl.col("side") == side).drop("side").head(num_unmatched).to_dicts()
            for side in ("target", "source")
        },
    }
