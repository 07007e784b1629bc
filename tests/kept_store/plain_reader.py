"""A reader of stores in zarr, polars, json and NumPy alone, as docs/format*.md describe them.

Nothing of fusestore is imported, and each step is one that the documents name. It is written to be
followed, not to be fast: everything is read whole. `read_store` gives every number of a store by
its path.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import zarr

FORMAT_VERSION = 1

MAP_KINDS = ["none", "exact", "mined", "prefix", "role", "byte"]
ALIGNMENT_KINDS = ["none", "span", "mined"]

Numbers = dict[str, np.ndarray]


def read_store(store: Path) -> Numbers:
    """Every complete thing of the store."""
    readers = {
        "corpora": read_corpus,
        "caches": read_cache,
        "vocabulary_maps": read_vocabulary_map,
        "alignments": read_alignment,
        "fused": read_fused,
    }
    numbers: Numbers = {}
    for kind, read in readers.items():
        for thing in sorted((store / kind).iterdir()):
            if (thing / "manifest.json").exists():
                found = read(thing)
                numbers |= {f"{kind}/{thing.name}/{name}": values for name, values in found.items()}
    return numbers


def read_document(file: Path) -> dict[str, Any]:
    """A JSON document, its format version and its checksum looked at."""
    data = file.read_bytes()
    content: dict[str, Any] = json.loads(data)
    assert content["format_version"] <= FORMAT_VERSION
    checksum = content.pop("checksum")
    lines = data.splitlines(keepends=True)
    others = b"".join(line for line in lines if not line.startswith(b'  "checksum": '))
    assert hashlib.sha256(others).hexdigest() == checksum == document_digest(content)
    content["digest"] = checksum
    return content


def document_digest(content: dict[str, Any]) -> str:
    """SHA-256 of the canonical form of a document without its checksum."""
    canonical = json.dumps(content, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    return hashlib.sha256(canonical.encode()).hexdigest()


def check_files(folder: Path, records: dict[str, dict[str, Any]]) -> None:
    """Every file is there with the size and the SHA-256 that a receipt or manifest says."""
    for path, record in records.items():
        data = (folder / path).read_bytes()
        assert len(data) == record["num_bytes"]
        assert hashlib.sha256(data).hexdigest() == record["sha256"]


def read_corpus(folder: Path) -> Numbers:
    """The documents, and what the tokens of each tokenizer must fit."""
    manifest = read_document(folder / "manifest.json")
    receipt = read_document(folder / "receipts/documents.json")
    assert receipt["fingerprint_digest"] == manifest["digest"]
    check_files(folder, receipt["files"])
    table = pl.read_parquet(folder / "documents.parquet")
    state = hashlib.sha256()
    for row in table.select("source", "segment", "split", "text").iter_rows():
        for value in row:
            data = str(value).encode()
            state.update(len(data).to_bytes(8, "little") + data)
    assert state.hexdigest() == manifest["documents_digest"]
    for text, length, digest in table.select("text", "byte_length", "digest").iter_rows():
        assert len(text.encode()) == length
        assert hashlib.sha256(text.encode()).hexdigest() == digest
    for tokens in sorted((folder / "tokens").iterdir()):
        read_tokens(tokens, manifest["digest"], table["byte_length"].to_numpy())
    columns = ("document", "segment", "text", "split", "source", "digest")
    return {name: np.array(table[name].to_list(), _text_or_int(table[name])) for name in columns}


def _text_or_int(column: pl.Series) -> Any:
    return None if column.dtype == pl.String else str(column.dtype).lower()


def read_tokens(folder: Path, corpus_digest: str, byte_lengths: np.ndarray) -> Numbers:
    """The tokens of a corpus in one tokenizer."""
    manifest = read_document(folder / "manifest.json")
    assert manifest["corpus_digest"] == corpus_digest
    suffix = "-bos" if manifest["add_bos"] else ""
    assert folder.name == manifest["tokenizer_digest"][:16] + suffix
    check_files(folder, manifest["files"])
    tokens = pl.read_parquet(folder / "tokens.parquet")
    offsets = pl.read_parquet(folder / "documents.parquet")["document_offsets"].to_numpy()
    ids, ends = tokens["token_ids"].to_numpy(), tokens["end_offsets"].to_numpy()
    state = hashlib.sha256()
    for values, dtype in ((ids, "<i4"), (ends, "<i4"), (offsets, "<i8")):
        state.update(values.astype(dtype).tobytes())
    assert state.hexdigest() == manifest["arrays_digest"]
    assert len(ids) == manifest["num_tokens"] == offsets[-1]
    assert len(offsets) - 1 == manifest["num_documents"] == len(byte_lengths)
    assert np.all(np.diff(ends)[np.setdiff1d(np.arange(len(ids) - 1), offsets[1:-1] - 1)] >= 0)
    assert np.all(ends <= np.repeat(byte_lengths, np.diff(offsets)))
    return {"token_ids": ids, "end_offsets": ends, "document_offsets": offsets}


def read_vocabulary(store: Path, tokenizer_digest: str) -> pl.DataFrame:
    """The bytes that each token id stands for."""
    name = tokenizer_digest[:16]
    receipt = read_document(store / f"vocabularies/{name}.json")
    assert receipt["fingerprint_digest"] == tokenizer_digest
    check_files(store / "vocabularies", receipt["files"])
    table = pl.read_parquet(store / f"vocabularies/{name}.parquet")
    assert np.array_equal(table["token_id"].to_numpy(), np.arange(receipt["stop"]))
    return table


def read_cache(folder: Path) -> Numbers:
    """The rows and tokens of a distribution cache."""
    manifest = read_document(folder / "manifest.json")
    fingerprint = manifest["fingerprint"]
    assert document_digest(fingerprint) == manifest["fingerprint_digest"]
    assert read_document(folder / "fingerprint.json")["digest"] == manifest["fingerprint_digest"]
    _check_cache_files(folder, manifest)
    group = _arrays(folder)
    ids, logprobs = decode_entries(group)
    numbers = {
        "ids": ids,
        "logprobs": logprobs,
        "tail": decode_tail(group["tail"]),
        "label_logprob": group["label_logprob"][:],
        "token_ids": group["token_ids"][:],
        "end_offsets": group["end_offsets"][:],
        "document_offsets": group["document_offsets"][:],
    }
    assert numbers["ids"].shape == (fingerprint["num_tokens"], fingerprint["top_k"])
    vocabulary = read_vocabulary(folder.parent.parent, fingerprint["tokenizer_digest"])
    assert len(vocabulary) == fingerprint["tokenizer_length"]
    return numbers


def decode_entries(group: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids int32 [T, k] and log-probabilities float32 [T, k]."""
    ids = group["rank_to_id"][:][group["ids"][:]]
    array = group["logprobs"]
    values, attributes = array[:], array.attrs
    if attributes["encoding"] == "grid-differences":
        absent = values == attributes["absent"]
        numbers = values.astype(np.float64).cumsum(axis=1)
        values = np.where(absent, -np.inf, -attributes["step"] * numbers).astype("f4")
    else:
        assert attributes["encoding"] == "exact"
    return ids, values


def decode_tail(array: Any) -> np.ndarray:
    """Log of the mass outside the entries, float32 [T]."""
    values, attributes = array[:], array.attrs
    if attributes["encoding"] == "exact":
        return np.asarray(values)
    assert attributes["encoding"] == "grid"
    absent = values == attributes["absent"]
    return np.where(absent, -np.inf, -attributes["step"] * values).astype("f4")


def _check_cache_files(folder: Path, manifest: dict[str, Any]) -> None:
    fingerprint = manifest["fingerprint"]
    rows, per_shard = fingerprint["num_tokens"], fingerprint["rows_per_shard"]
    parts = ["tokens", *(f"{shard:06d}" for shard in range(-(-rows // per_shard)))]
    lines, num_bytes = "", 0
    for part in parts:
        receipt = read_document(folder / f"receipts/{part}.json")
        assert receipt["fingerprint_digest"] == manifest["fingerprint_digest"]
        check_files(folder, receipt["files"])
        lines += receipt["digest"] + "\n"
        num_bytes += sum(record["num_bytes"] for record in receipt["files"].values())
    assert hashlib.sha256(lines.encode()).hexdigest() == manifest["content_digest"]
    assert num_bytes == manifest["num_bytes"]


def read_vocabulary_map(folder: Path) -> Numbers:
    """The target token of every source token."""
    manifest = read_document(folder / "manifest.json")
    names = [manifest[f"{side}_tokenizer_digest"] for side in ("source", "target")]
    assert folder.name == f"{names[0][:16]}-{names[1][:16]}-{manifest['method']}"
    data = (folder / "map.parquet").read_bytes()
    assert hashlib.sha256(data).hexdigest() == manifest["map_sha256"]
    table = pl.read_parquet(data)
    assert np.array_equal(table["source_id"].to_numpy(), np.arange(manifest["num_source_ids"]))
    target_id = table["target_id"].fill_null(-1).to_numpy()
    distance = table["distance"].fill_null(-1).to_numpy()
    kind = np.array([MAP_KINDS.index(name) for name in table["kind"]], np.uint8)
    assert {name: int((kind == i).sum()) for i, name in enumerate(MAP_KINDS)} == manifest["counts"]
    state = hashlib.sha256()
    for part in (*names, manifest["method"], manifest["tie_break"]):
        state.update(part.encode() + b"\0")
    for values, dtype in ((target_id, "<i4"), (distance, "<i4"), (kind, "u1")):
        state.update(values.astype(dtype).tobytes())
    assert state.hexdigest() == manifest["content_digest"]
    return {"target_id": target_id, "distance": distance, "kind": kind}


def read_alignment(folder: Path) -> Numbers:
    """The source position of every target token."""
    manifest = read_document(folder / "manifest.json")
    fingerprint = read_document(folder / "fingerprint.json")
    assert document_digest(manifest["fingerprint"]) == fingerprint["digest"]
    check_files(folder, {part["name"]: part for part in manifest["parts"]})
    tables = [pl.read_parquet(folder / part["name"]) for part in manifest["parts"]]
    table = pl.concat(tables)
    assert len(table) == fingerprint["num_target_tokens"]
    kind = np.array([ALIGNMENT_KINDS.index(name) for name in table["kind"]], np.uint8)
    return {"source_pos": table["source_pos"].fill_null(-1).to_numpy(), "kind": kind}


def read_fused(folder: Path) -> Numbers:
    """The arrays of a fused dataset, by zarr and by their raw bytes."""
    manifest = read_document(folder / "manifest.json")
    plan = read_document(folder / "recipe.json")
    assert document_digest(manifest["plan"]) == plan["digest"] == manifest["plan_digest"]
    check_files(folder, manifest["files"])
    numbers = {name: array[:] for name, array in _arrays(folder).items()}
    rows, per_file = plan["num_tokens"], min(plan["recipe"]["rows_per_shard"], plan["num_tokens"])
    for name, values in numbers.items():
        assert len(values) == rows
        tail = "/0" * (values.ndim - 1)
        files = [folder / f"{name}/c/{i}{tail}" for i in range(-(-rows // per_file))]
        raw = b"".join(file.read_bytes()[:-4] for file in files)
        mapped = np.frombuffer(raw, values.dtype.newbyteorder("<")).reshape(-1, *values.shape[1:])
        assert np.array_equal(mapped[:rows], values)
    return numbers


def _arrays(folder: Path) -> dict[str, Any]:
    with warnings.catch_warnings():
        # zarr-python warns that numcodecs' codecs are not part of the Zarr v3 core.
        warnings.simplefilter("ignore")
        return dict(zarr.open_group(folder, mode="r").arrays())
