"""A reader of distribution caches in zarr, json and NumPy alone, as docs/format.md says.

Nothing of fusestore is imported. `plain_reader` reads the rest of a store.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr

FORMAT_VERSION = 1

Numbers = dict[str, np.ndarray]


def read_rows(folder: Path) -> Numbers:
    """The rows and tokens of a distribution cache."""
    manifest = read_document(folder / "manifest.json")
    fingerprint = manifest["fingerprint"]
    assert document_digest(fingerprint) == manifest["fingerprint_digest"]
    assert read_document(folder / "fingerprint.json")["digest"] == manifest["fingerprint_digest"]
    check_cache_files(folder, manifest)
    group = open_arrays(folder)
    logprobs = decode_logprobs(group["logprobs"])
    # What lies where no entry is means nothing; fusestore gives 0.
    ids = np.where(np.isneginf(logprobs), 0, decode_ids(group)).astype("i4")
    numbers = {"ids": ids, "logprobs": logprobs, "tail": decode_tail(group["tail"])}
    numbers["label_logprob"] = group["label_logprob"][:]
    kept = tokens_with_rows(group)
    assert (len(kept), fingerprint["top_k"]) == ids.shape
    num_tokens = fingerprint["num_tokens"]
    if fingerprint["kept"] is not None:
        assert fingerprint["only"] == "supervised"
        assert fingerprint["kept"] == {
            "num_rows": len(kept),
            "num_runs": group["row_runs"].shape[0],
        }
        # fusestore gives these for tokens without a row.
        absent = {"ids": 0, "logprobs": -np.inf, "tail": np.nan, "label_logprob": np.nan}
        for name, values in numbers.items():
            spread = np.full((num_tokens, *values.shape[1:]), absent[name], values.dtype)
            spread[kept] = values
            numbers[name] = spread
    logprobs = numbers["logprobs"]
    assert len(logprobs) == num_tokens
    numbers |= {name: group[name][:] for name in ("token_ids", "end_offsets", "document_offsets")}
    offsets = numbers["document_offsets"]
    assert np.isnan(numbers["label_logprob"][offsets[1:][np.diff(offsets) > 0] - 1]).all()
    for document in manifest["skipped_documents"]:
        rows = slice(offsets[document], offsets[document + 1])
        assert np.isneginf(logprobs[rows]).all()
        assert not numbers["tail"][rows].any()
        assert np.isnan(numbers["label_logprob"][rows]).all()
    return numbers


def tokens_with_rows(group: Mapping[str, Any]) -> np.ndarray:
    """The token of each row, rising: all tokens, or those of the runs."""
    if "row_runs" not in group:
        return np.arange(group["token_ids"].shape[0])
    return np.concatenate([np.arange(start, stop) for start, stop in group["row_runs"][:]])


def decode_logprobs(array: Any) -> np.ndarray:
    """Log-probabilities of the entries, float32 [T, k]."""
    values, attributes = array[:], array.attrs
    if attributes["encoding"] == "counts":
        with np.errstate(divide="ignore"):
            return np.log(values / attributes["draws"]).astype("f4")
    if attributes["encoding"] == "grid-differences":
        numbers = values.cumsum(axis=1, dtype="f8")
        absent = values == attributes["absent"]
        return np.where(absent, -np.inf, -attributes["step"] * numbers).astype("f4")
    return decode_tail(array)


def decode_tail(array: Any) -> np.ndarray:
    """Log of the mass outside the entries, float32 [T]; and what else may be exact or on a grid."""
    values, attributes = array[:], array.attrs
    if attributes["encoding"] == "exact":
        return np.asarray(values)
    assert attributes["encoding"] == "grid"
    absent = values == attributes["absent"]
    return np.where(absent, -np.inf, -attributes["step"] * values.astype("f8")).astype("f4")


def decode_ids(group: Mapping[str, Any]) -> np.ndarray:
    """Token ids of the entries, [T, k]; anything where no entry is."""
    numbers, encoding = group["ids"][:].astype("i8"), group["ids"].attrs["encoding"]
    if encoding == "exact":
        return numbers
    if encoding == "number-gaps":
        differences = group["logprobs"][:]
        for j in range(2, numbers.shape[1]):
            gap = differences[:, j] == 0
            numbers[gap, j] += numbers[gap, j - 1] + 1
    else:
        assert encoding == "number"
    class_order, rank_to_id = group["class_order"][:], group["rank_to_id"][:]
    head = class_order.shape[1]
    c = group["token_class"][:][group["token_ids"][:][tokens_with_rows(group)]][:, None]
    ranks = np.where(numbers < head, class_order[c, np.minimum(numbers, head - 1)], numbers)
    return rank_to_id[ranks]


def check_cache_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Every receipt of a cache, their files, and the digest of its content."""
    fingerprint = manifest["fingerprint"]
    per_shard = fingerprint["rows_per_shard"]
    rows = (fingerprint["kept"] or {"num_rows": fingerprint["num_tokens"]})["num_rows"]
    parts = ["tokens", *(f"{shard:06d}" for shard in range(-(-rows // per_shard)))]
    receipts = [read_receipt(folder, part, manifest["fingerprint_digest"]) for part in parts]
    for shard, receipt in enumerate(receipts[1:]):
        start = shard * per_shard
        assert (receipt["start"], receipt["stop"]) == (start, min(start + per_shard, rows))
    lines = "".join(f"{receipt['digest']}\n" for receipt in receipts)
    assert sha256(lines.encode()) == manifest["content_digest"]
    records = [record for receipt in receipts for record in receipt["files"].values()]
    assert sum(record["num_bytes"] for record in records) == manifest["num_bytes"]


def read_document(file: Path) -> dict[str, Any]:
    """A JSON document, its format version and its checksum looked at; `digest` is added."""
    data = file.read_bytes()
    content: dict[str, Any] = json.loads(data)
    assert content["format_version"] <= FORMAT_VERSION
    checksum = content.pop("checksum")
    lines = data.splitlines(keepends=True)
    others = b"".join(line for line in lines if not line.startswith(b'  "checksum": '))
    assert sha256(others) == checksum == document_digest(content)
    content["digest"] = checksum
    return content


def document_digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical form of a document without its checksum."""
    return sha256(
        (json.dumps(content, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()
    )


def sha256(data: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def check_files(folder: Path, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Every file is there with the size and the SHA-256 that a receipt or manifest says."""
    for path, record in records.items():
        data = (folder / path).read_bytes()
        assert len(data) == record["num_bytes"]
        assert sha256(data) == record["sha256"]


def read_receipt(folder: Path, part: str, fingerprint_digest: str) -> dict[str, Any]:
    """A receipt of this artifact, and that its files are what it says."""
    receipt = read_document(folder / f"receipts/{part}.json")
    assert (receipt["part"], receipt["fingerprint_digest"]) == (part, fingerprint_digest)
    check_files(folder, receipt["files"])
    return receipt


def open_arrays(folder: Path) -> dict[str, Any]:
    """The arrays of a Zarr group by name."""
    with warnings.catch_warnings():
        # zarr-python warns that numcodecs' codecs are not part of the Zarr v3 core.
        warnings.simplefilter("ignore")
        return dict(zarr.open_group(folder, mode="r").arrays())


def check_all_listed(folder: Path, manifest: Mapping[str, Any]) -> None:
    """A manifest whose `files` are all others of its folder."""
    check_files(folder, manifest["files"])
    found = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert found == {*manifest["files"], "manifest.json"}


def check_fingerprint(folder: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
    """The fingerprint, which is the same document inside the manifest."""
    fingerprint = read_document(folder / "fingerprint.json")
    assert document_digest(expected) == fingerprint["digest"]
    return fingerprint


def check_raw_files(folder: Path, name: str, values: np.ndarray, rows_per_file: int) -> None:
    """The files of an array with one raw chunk each are its values and four bytes of checksum."""
    tail = "/0" * (values.ndim - 1)
    files = [folder / f"{name}/c/{i}{tail}" for i in range(-(-len(values) // rows_per_file))]
    raw = b"".join(file.read_bytes()[:-4] for file in files)
    mapped = np.frombuffer(raw, values.dtype.newbyteorder("<")).reshape(-1, *values.shape[1:])
    assert len(mapped) == len(files) * rows_per_file
    assert np.array_equal(mapped[: len(values)], values)
    assert not mapped[len(values) :].any()
