"""Verifies a distribution cache: every byte against its receipt, every row against the rules.

The manifest has its own checksum and the digest over all receipts; each receipt its own checksum,
and size and SHA-256 of every file; every chunk a CRC-32C. So any flipped or missing byte of any
file is found.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from fusestore.cache.layout import CacheArrays, cache_arrays
from fusestore.cache.manifest import TOKENS_PART, CacheManifest, Fingerprint, content_digest
from fusestore.cache.row_reader import RowReader
from fusestore.cache.rows import Rows
from fusestore.errors import CorruptionError, InvalidInputError, NotFoundError
from fusestore.storage.location import Location
from fusestore.store.codec import POSITIVE_TOLERANCE, TAIL_STEP
from fusestore.store.findings import Finding, file_digest, load_or_report
from fusestore.store.metadata_check import metadata_findings
from fusestore.store.receipts import Receipt, receipt_path, shard_part

ROWS_AT_ONCE = 65_536

MISSING_LISTED = 10_000
"""Where more files are missing, and more than there are, they are not listed one by one."""

MASS_TOLERANCE = 1e-3
"""Largest relative error of a row's mass by float32 rounding, beyond the codec's error."""


def verify_cache(location: Location, quick: bool = False) -> list[Finding]:
    """All problems of the cache in this folder; empty if it is sound.

    Args:
        location: the cache's folder.
        quick: manifests, receipts and file sizes only, without reading the data.

    Raises:
        NotFoundError: there is no cache in the folder.
        AccessDeniedError, StorageError: the storage failed.
    """
    sizes = location.sizes()
    if not {"fingerprint.json", "manifest.json"} & sizes.keys():
        raise NotFoundError(f"There is no cache in {location}.")
    findings: list[Finding] = []
    fingerprint = load_or_report(Fingerprint, location, "fingerprint.json", findings)
    manifest = load_or_report(CacheManifest, location, "manifest.json", findings)
    if manifest is not None:
        if manifest.fingerprint.digest != manifest.fingerprint_digest:
            findings.append(Finding("manifest.json", "names another fingerprint than it holds"))
        if fingerprint is not None and fingerprint != manifest.fingerprint:
            findings.append(Finding("fingerprint.json", "differs from the one in manifest.json"))
        fingerprint = manifest.fingerprint
    if fingerprint is None:
        return findings
    arrays = cache_arrays(fingerprint)
    num_files = sum(spec.num_files for spec in (*arrays.per_shard, *arrays.fixed))
    if num_files > 2 * len(sizes) + MISSING_LISTED:
        problem = f"stands for {num_files:,} files of arrays; the folder has {len(sizes):,} files"
        findings.append(
            Finding("fingerprint.json" if manifest is None else "manifest.json", problem)
        )
        return findings
    receipts = _check_receipts(location, fingerprint, manifest, findings)
    for part, receipt in receipts.items():
        files = _expected_files(arrays, part)
        if receipt is not None and receipt.files.keys() != files:
            findings.append(
                Finding(receipt_path(part), "lists other files than the part has", part)
            )
        findings += _check_files(location, receipt, files, sizes, quick, part)
    if not quick:
        damaged = {finding.file for finding in findings}
        findings += _check_content(location, fingerprint, manifest, arrays, damaged)
    return findings


def _check_receipts(
    location: Location,
    fingerprint: Fingerprint,
    manifest: CacheManifest | None,
    findings: list[Finding],
) -> dict[str, Receipt | None]:
    """Every part's receipt, in order; None if it cannot be used."""
    plan = fingerprint.plan
    bounds = {TOKENS_PART: (0, fingerprint.num_tokens)}
    bounds |= {shard_part(shard): plan.bounds(shard) for shard in range(len(plan))}
    receipts: dict[str, Receipt | None] = {}
    for part, rows in bounds.items():
        file = receipt_path(part)
        receipt = load_or_report(Receipt, location, file, findings, part)
        if receipt is not None and (
            (receipt.part, receipt.start, receipt.stop) != (part, *rows)
            or receipt.fingerprint_digest != fingerprint.digest
        ):
            findings.append(Finding(file, "belongs to another part or another cache", part))
            receipt = None
        receipts[part] = receipt
    sound = [receipt for receipt in receipts.values() if receipt is not None]
    if (
        manifest is not None
        and len(sound) == len(receipts)
        and content_digest(sound) != manifest.content_digest
    ):
        findings.append(Finding("manifest.json", "names other content than the receipts"))
    return receipts


def _expected_files(arrays: CacheArrays, part: str) -> set[str]:
    if part != TOKENS_PART:
        return {spec.file_name(int(part)) for spec in arrays.per_shard}
    metadata = {f"{spec.name}/zarr.json" for spec in (*arrays.per_shard, *arrays.fixed)}
    data = {spec.file_name(shard) for spec in arrays.fixed for shard in range(spec.num_files)}
    return {"zarr.json"} | metadata | data


def _check_files(
    location: Location,
    receipt: Receipt | None,
    files: Collection[str],
    sizes: Mapping[str, int],
    quick: bool,
    part: str,
) -> Iterator[Finding]:
    for file in sorted(files):
        if file not in sizes:
            yield Finding(file, "is missing", part)
            continue
        record = receipt.files.get(file) if receipt is not None else None
        if record is None:
            continue
        if sizes[file] != record.num_bytes:
            yield Finding(
                file, f"has {sizes[file]:,} bytes, its receipt says {record.num_bytes:,}", part
            )
        elif not quick and file_digest(location / file, record.num_bytes) != record.sha256:
            yield Finding(file, "does not match the SHA-256 in its receipt", part)


def _check_content(
    location: Location,
    fingerprint: Fingerprint,
    manifest: CacheManifest | None,
    arrays: CacheArrays,
    damaged: Collection[str],
) -> Iterator[Finding]:
    """Problems of the numbers in files that are whole."""
    if any(file in damaged for file in _expected_files(arrays, TOKENS_PART)):
        return
    reader = RowReader(location, fingerprint)
    try:
        tokens = reader.tokens
    except (CorruptionError, InvalidInputError) as error:
        yield Finding("token_ids", str(error), TOKENS_PART)
        return
    for finding in metadata_findings(location, (*arrays.per_shard, *arrays.fixed)):
        yield Finding(finding.file, finding.problem, TOKENS_PART)
    if arrays.id_order:
        try:
            reader.id_order  # noqa: B018 - read for its errors
        except CorruptionError as error:
            yield Finding("rank_to_id", str(error), TOKENS_PART)
            return
    vocab_size = fingerprint.model.vocab_size
    if tokens.token_ids.min() < 0 or tokens.token_ids.max() >= vocab_size:
        yield Finding("token_ids", f"holds ids outside the vocabulary of {vocab_size}", TOKENS_PART)
        return
    inner = np.ones(len(tokens.end_offsets), dtype=bool)
    inner[tokens.document_offsets[:-1][np.diff(tokens.document_offsets) > 0]] = False
    if np.any(np.diff(tokens.end_offsets, prepend=0)[inner] < 0) or tokens.end_offsets.min() < 0:
        yield Finding("end_offsets", "decrease inside a document", TOKENS_PART)
    try:
        kept = reader.kept.tokens(0, fingerprint.num_rows)
    except CorruptionError as error:
        yield Finding("row_runs", str(error), TOKENS_PART)
        return
    unlabeled = _rows_without_label(tokens.document_offsets, manifest)[kept]
    for shard in range(len(fingerprint.plan)):
        files = {spec.file_name(shard) for spec in arrays.per_shard}
        files.add(receipt_path(shard_part(shard)))
        if any(file in damaged for file in files):
            continue
        start, stop = fingerprint.plan.bounds(shard)
        for low in range(start, stop, ROWS_AT_ONCE):
            high = min(low + ROWS_AT_ONCE, stop)
            try:
                rows = reader.kept_rows(low, high)
            except CorruptionError as error:
                yield Finding(receipt_path(shard_part(shard)), str(error), shard_part(shard))
                break
            for array, problem in row_problems(rows, fingerprint, unlabeled[low:high]):
                name = f"{array}/c/{shard}"
                yield Finding(name, f"{problem} in rows {low:,} to {high:,}", shard_part(shard))


def _rows_without_label(
    document_offsets: npt.NDArray[np.int64], manifest: CacheManifest | None
) -> npt.NDArray[np.bool_]:
    """Rows without a label, bool [T]: each document's last row, all rows of skipped documents."""
    unlabeled = np.zeros(int(document_offsets[-1]), dtype=bool)
    nonempty = np.diff(document_offsets) > 0
    unlabeled[document_offsets[1:][nonempty] - 1] = True
    for index in manifest.skipped_documents if manifest is not None else ():
        if index < len(nonempty):
            unlabeled[document_offsets[index] : document_offsets[index + 1]] = True
    return unlabeled


def row_problems(
    rows: Rows, fingerprint: Fingerprint, unlabeled: npt.NDArray[np.bool_]
) -> Iterator[tuple[str, str]]:
    """(array, problem) for each rule that rows break.

    The rules: entries are finite, at most 0, and fall along the row; ids lie inside the model's
    vocabulary, and none occurs twice in a row; kept mass and tail, where it is known, are 1 but for
    the codec's error; the cache's rule determines the number of entries; a label's log-probability
    is finite, at most 0, and NaN in rows without a label (`unlabeled`, bool [n]) and, unless the
    cache lacks some, in no others.
    """
    # NaN is not at most anything.
    if not np.all(rows.logprobs <= POSITIVE_TOLERANCE):
        yield "logprobs", "an entry is NaN or has a log-probability above 0"
        return
    if np.any(rows.logprobs[:, 1:] > rows.logprobs[:, :-1]):
        yield "logprobs", "log-probabilities rise along a row"
    present = rows.logprobs > -np.inf
    vocab_size = fingerprint.model.vocab_size
    if np.any((rows.ids < 0) | (rows.ids >= vocab_size)):
        wrong = rows.ids[(rows.ids < 0) | (rows.ids >= vocab_size)][0]
        yield "ids", f"the token id {wrong} is outside the vocabulary of {vocab_size}"
    # Absent entries get distinct ids below zero.
    ids = np.where(present, rows.ids, -1 - np.arange(rows.ids.shape[1]))
    ids.sort(axis=1)
    if np.any(ids[:, 1:] == ids[:, :-1]):
        yield "ids", "a token id occurs twice in a row"
    step = fingerprint.logprob_step
    slack = 0.0 if step is None else max(step, TAIL_STEP) / 2
    kept = np.exp(rows.logprobs.astype(np.float64)).sum(axis=1)
    known = ~np.isnan(rows.tail) | fingerprint.known_tail
    if not np.all(rows.tail[known] <= POSITIVE_TOLERANCE):
        yield "tail", "a tail is NaN or above 0"
        return
    mass = kept + np.where(known, np.exp(rows.tail.astype(np.float64)), 0.0)
    most = math.exp(slack) * (1 + MASS_TOLERANCE)
    # Of samples the counts are looked at below.
    least = 0.0 if fingerprint.selection == "sampled" else 1 / most
    if np.any(mass > most) or np.any(mass[known] < least):
        off = mass[np.argmax(np.abs(np.where(known, mass, np.minimum(mass, 1.0)) - 1))]
        yield "tail", f"kept mass and tail add up to {off:.4f}"
    nonempty = present.any(axis=1)
    if fingerprint.selection == "sampled":
        if not np.array_equal(np.isneginf(rows.tail), nonempty):
            yield "tail", "sampled rows have mass outside their entries"
        if np.any(np.abs(kept[nonempty] - 1) > MASS_TOLERANCE):
            yield "logprobs", f"counts do not add up to {fingerprint.top_k} draws"
    if fingerprint.top_p is not None:
        enough = math.log(fingerprint.top_p) - slack - MASS_TOLERANCE
        if np.any(kept[nonempty & ~present[:, -1]] < math.exp(enough)):
            yield "logprobs", "a row has room for more entries and less than top_p in them"
    if np.any(rows.label_logprob > POSITIVE_TOLERANCE):
        yield "label_logprob", "a label has a log-probability above 0"
    if np.any(np.isinf(rows.label_logprob)):
        yield "label_logprob", "a label has an infinite log-probability"
    unknown = np.isnan(rows.label_logprob)
    if np.any(unlabeled & ~unknown) or (fingerprint.known_labels and np.any(unknown & ~unlabeled)):
        yield "label_logprob", "labels are missing, or exist without a next token"
