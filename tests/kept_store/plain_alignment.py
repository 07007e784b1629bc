"""Reads vocabulary maps and alignments, as docs/store.md and format.md say; see `plain_reader`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tests.kept_store.plain_cache import (
    Numbers,
    check_all_listed,
    check_fingerprint,
    check_raw_files,
    open_arrays,
    read_document,
    read_receipt,
)

MAP_KINDS = ["none", "exact", "mined", "prefix", "role", "byte", "statistical"]
ALIGNMENT_KINDS = ["none", "span", "inside", "mined"]


def read_vocabulary_map(folder: Path) -> Numbers:
    """The target token of every source token."""
    manifest = read_document(folder / "manifest.json")
    fingerprint = check_fingerprint(folder, manifest["fingerprint"])
    names = [fingerprint[f"{side}_tokenizer_digest"] for side in ("source", "target")]
    parts = [names[0][:16], names[1][:16], fingerprint["method"]]
    if fingerprint["method"] == "statistical":
        parts.append(fingerprint["corpus_digest"][:16])
    else:
        assert fingerprint["corpus_digest"] is None
    assert folder.name == "-".join(parts)
    check_all_listed(folder, manifest)
    table = pl.read_parquet(folder / "map.parquet")
    assert np.array_equal(table["source_id"].to_numpy(), np.arange(manifest["num_source_ids"]))
    target_id = table["target_id"].fill_null(-1).to_numpy()
    distance = table["distance"].fill_null(-1).to_numpy()
    kind = np.array([MAP_KINDS.index(name) for name in table["kind"]], np.uint8)
    assert counts(kind, MAP_KINDS) == manifest["counts"]
    state = hashlib.sha256()
    for part in (*names, fingerprint["method"], fingerprint["tie_break"]):
        state.update(part.encode() + b"\0")
    for values, dtype in ((target_id, "<i4"), (distance, "<i4"), (kind, "u1")):
        state.update(values.astype(dtype).tobytes())
    assert state.hexdigest() == manifest["content_digest"]
    return {"target_id": target_id, "distance": distance, "kind": kind}


def counts(kind: np.ndarray, names: list[str]) -> dict[str, int]:
    """How often each code occurs, by name."""
    return {name: int((kind == i).sum()) for i, name in enumerate(names)}


def read_alignment(folder: Path) -> Numbers:
    """The source position of every target token, and the tokens that stay unmatched."""
    manifest = read_document(folder / "manifest.json")
    fingerprint = check_fingerprint(folder, manifest["fingerprint"])
    check_all_listed(folder, manifest)
    rows, per_shard = fingerprint["num_target_tokens"], fingerprint["rows_per_shard"]
    for part in ("layout", *(f"{shard:06d}" for shard in range(-(-rows // per_shard)))):
        read_receipt(folder, part, fingerprint["digest"])
    group = open_arrays(folder)
    assert group["kind"].attrs["names"] == ALIGNMENT_KINDS
    numbers = {name: array[:] for name, array in group.items()}
    kind, offsets = numbers["kind"], numbers["document_offsets"]
    assert rows == len(kind) == len(numbers["source_pos"]) == offsets[-1]
    assert len(offsets) - 1 == fingerprint["num_documents"]
    for name in ("source_pos", "kind"):
        check_raw_files(folder, name, numbers[name], min(per_shard, rows))
    check_raw_files(folder, "document_offsets", offsets, len(offsets))
    assert counts(kind, ALIGNMENT_KINDS) == manifest["counts"]
    assert np.array_equal(numbers["source_pos"] >= 0, kind > 0)
    for start, stop in pairwise(offsets):
        position, of = numbers["source_pos"][start:stop], kind[start:stop]
        for name in ("inside", "mined"):
            chosen = np.isin(of, [ALIGNMENT_KINDS.index(each) for each in ("span", name)])
            assert np.all(np.diff(position[chosen]) >= 0)
    unmatched = pl.read_parquet(folder / "unmatched.parquet")
    of_target = unmatched.filter(pl.col("side") == "target")["unmatched"].sum()
    assert of_target == manifest["counts"]["none"]
    numbers["unmatched"] = unmatched.select("token_id", "unmatched").to_numpy()
    return numbers


def check_inside(
    alignment: Mapping[str, Any],
    source: Mapping[str, Any],
    target: Mapping[str, Any],
    vocabulary: pl.DataFrame,
) -> None:
    """Rows of kind `inside` precede the source token inside which the target token ends.

    That token begins with the bytes by which the row is conditioned: see docs/format.md.
    """
    spelled, kinds = vocabulary["bytes"].to_list(), vocabulary["kind"].to_list()
    position, kind = alignment["source_pos"][:], alignment["kind"][:]
    offsets = zip(
        pairwise(source["document_offsets"][:]),
        pairwise(target["document_offsets"][:]),
        strict=True,
    )
    for (first, stop), (start, end) in offsets:
        ids, ends = source["token_ids"][first:stop], source["end_offsets"][first:stop]
        for place in start + np.flatnonzero(kind[start:end] == ALIGNMENT_KINDS.index("inside")):
            row = position[place]
            token, begin = ids[row + 1], ends[row]
            read = target["end_offsets"][place]
            assert begin < read < ends[row + 1]
            assert kinds[token] in ("text", "byte")
            added = len(spelled[token]) - (ends[row + 1] - begin)
            assert added == 0 or (added == 1 and begin == 0)
            since = spelled[token][: read - begin + added]
            assert 0 < len(since) < len(spelled[token])
