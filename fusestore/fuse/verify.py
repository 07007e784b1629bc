"""Verifies the rows of a complete fused dataset, in either form: every number against its range."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fusestore.errors import CorruptionError, InvalidInputError, NotFoundError
from fusestore.fuse.choices import KIND_NAMES
from fusestore.fuse.layout import fused_arrays, shared_arrays
from fusestore.fuse.manifest import FusedManifest
from fusestore.fuse.row_rules import first_bad_row
from fusestore.fuse.window_table import read_window_starts
from fusestore.storage.location import Location
from fusestore.store.array_reader import ArrayReader
from fusestore.store.arrays import ArraySpec
from fusestore.store.findings import Finding
from fusestore.store.metadata_check import metadata_findings

ROWS_AT_ONCE = 65_536

_MAX_VALUES_AT_ONCE = 2**22
"""Entries of the rows that are checked at once: 32 MB."""

_KNOWN_TOLERANCE = 1e-3

_Values = npt.NDArray[Any]


def row_findings(location: Location, manifest: FusedManifest) -> Iterator[Finding]:
    """The problems of a dataset's numbers; its files must be those that the manifest lists.

    Args:
        location: its folder.
        manifest: its manifest.
    """
    plan, recipe = manifest.plan, manifest.plan.recipe
    windows = manifest.num_windows
    if not recipe.has_window_table:
        windows = -(-manifest.num_tokens // recipe.window_length)
    said = (manifest.plan_digest, manifest.num_tokens, manifest.num_documents, manifest.num_windows)
    if said != (plan.digest, plan.num_tokens, plan.num_documents, windows):
        yield Finding("manifest.json", "says other digests or numbers than its plan")
        return
    make = shared_arrays if manifest.form == "shared" else fused_arrays
    arrays = make(plan.num_tokens, recipe.top_k, recipe.rows_per_shard)
    readers = {spec.name: ArrayReader(location, spec, manifest.files) for spec in arrays}
    yield from metadata_findings(location, arrays)
    kinds = np.zeros(len(KIND_NAMES), np.int64)
    last_document, at_once = 0, max(1, min(ROWS_AT_ONCE, _MAX_VALUES_AT_ONCE // recipe.top_k))
    for start in range(0, plan.num_tokens, at_once):
        stop = min(start + at_once, plan.num_tokens)
        try:
            rows = {name: reader.read(start, stop) for name, reader in readers.items()}
        except (CorruptionError, InvalidInputError) as error:
            yield Finding(arrays[0].file_name(start // arrays[0].rows_per_file), str(error))
            return
        problem = _problem(rows, manifest, last_document)
        if problem is not None:
            row, text = problem
            yield _finding(arrays[0], start + row, text)
            return
        kinds += np.bincount(rows["kind"], minlength=len(KIND_NAMES))
        last_document = int(rows["document"][-1])
    if dict(zip(KIND_NAMES, kinds.tolist(), strict=True)) != manifest.kinds:
        yield Finding("manifest.json", "counts other kinds of positions than there are")
    yield from _window_findings(location, manifest)


def _finding(spec: ArraySpec, row: int, text: str) -> Finding:
    shard = row // spec.rows_per_file
    return Finding(f"receipts/{shard:06d}.json", f"has a shard with a wrong row {row:,}: {text}")


def _problem(
    rows: Mapping[str, _Values], manifest: FusedManifest, last_document: int
) -> tuple[int, str] | None:
    """The first wrong row, and what is wrong with it."""
    kind = rows["kind"]
    if kind.dtype != np.uint8:
        if kind.max() > 255:
            return int(np.argmax(kind > 255)), f"kind {kind.max()} is none"
        kind = kind.astype(np.uint8)
    bad = first_bad_row(
        rows["input_ids"],
        rows["next_ids"],
        rows["ids"],
        rows["logprobs"],
        rows["tail"],
        kind,
        manifest.plan.vocab_size,
        len(KIND_NAMES),
    )
    if bad is not None:
        return bad.row, bad.problem
    known, source, document = rows["known"], rows["source"], rows["document"]
    sources = len(manifest.plan.inputs)
    before = np.concatenate([[last_document], document[:-1]])
    rules = {
        "the share that is known is {}": (
            "known",
            ~((known >= 0) & (known <= 1 + _KNOWN_TOLERANCE)),
        ),
        "its source is {}": ("source", (source < -1) | (source >= sources)),
        "its document is {}": ("document", document < before),
    }
    for text, (name, wrong) in rules.items():
        if wrong.any():
            row = int(np.argmax(wrong))
            return row, text.format(rows[name][row])
    return None


def _window_findings(location: Location, manifest: FusedManifest) -> Iterator[Finding]:
    if not manifest.plan.recipe.has_window_table:
        return
    try:
        read_window_starts(location, manifest)
    except (CorruptionError, NotFoundError) as error:
        yield Finding("window_starts/c/0", str(error))
