"""MaxText's records: `teacher_top_k_part_{:05d}_host_{:03d}.array_record`, one sequence a record.

A record is a `tf.train.Example`:

    inputs               int64 [n]
    top_k_logits         float [n · k], raw; row i as in `logits[i]`
    top_k_indices        int64 [n · k]
    inputs_segmentation  int64 [n], the number of the document, 0 for padding; optional
    inputs_position      int64 [n], from 0 in each document; optional
    targets              int64 [n], the next token; optional
    targets_segmentation int64 [n], 0 where the target does not count; optional
    sequence_hash        int64 [1], Python's hash, which differs between processes: not read

Without the log-sum-exp only ratios are known, so the tail and labels are unknown. Records of
earlier versions are pickles, which are not read.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fusestore.errors import InvalidInputError, MissingDependencyError
from fusestore.interop.foreign import (
    ForeignDocument,
    ForeignFile,
    ForeignFormat,
    Ids,
    ReadJob,
    labels_of,
    rows_of_logits,
    rows_of_logprobs,
)
from fusestore.interop.tf_example import parse_example

_NEEDED = ("inputs", "top_k_logits", "top_k_indices")
_PER_TOKEN = ("inputs_segmentation", "inputs_position", "targets", "targets_segmentation")

Features = dict[str, npt.NDArray[Any]]


class MaxText(ForeignFormat):
    """See the module."""

    suffixes = (".array_record",)

    def documents(self, files: Sequence[ForeignFile], job: ReadJob) -> Iterator[ForeignDocument]:
        """One a document of each record."""
        for file in files:
            for number, data in enumerate(_records(file)):
                place = f"Record {number} of {file.name}"
                yield from _documents(place, _features(place, data), job)


def _records(file: ForeignFile) -> Iterator[bytes]:
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError as error:
        raise MissingDependencyError(
            "MaxText's records are read by the package array_record, which is not installed: "
            "pip install 'fusestore[maxtext]'."
        ) from error
    try:
        reader = ArrayRecordReader(str(file.path))
        try:
            if not reader.ok():
                raise ValueError("it has no footer, as a file that is cut off")
            for number in range(reader.num_records()):
                yield reader.read([number])[0]
        finally:
            reader.close()
    except (RuntimeError, ValueError, IndexError) as error:
        raise InvalidInputError(
            f"{file.name} cannot be read as array_record: {error}. Copy it again."
        ) from error


def _features(place: str, data: bytes) -> Features:
    if data[:1] == b"\x80":
        raise InvalidInputError(
            f"{place} is a pickle, as earlier versions of MaxText write. It could run code, so it "
            "is not read. Save the logits again with MaxText's present version."
        )
    features = parse_example(place, data)
    for name in _NEEDED:
        if name not in features:
            found = ", ".join(features) or "none"
            raise InvalidInputError(
                f"{place} has no feature {name!r}, which the layout maxtext has. Its features "
                f"are: {found}."
            )
    for name in ("inputs", "top_k_indices", *_PER_TOKEN):
        if name in features and features[name].dtype.kind != "i":
            raise InvalidInputError(f"{place} has no integers in the feature {name!r}.")
    count, values = len(features["inputs"]), len(features["top_k_logits"])
    if values != len(features["top_k_indices"]) or values == 0 or values % max(count, 1):
        raise InvalidInputError(
            f"{place} has {count} tokens, {values} logits and {len(features['top_k_indices'])} "
            "ids; expected as many ids as logits, the same number for each token."
        )
    for name in _PER_TOKEN:
        if name in features and len(features[name]) != count:
            raise InvalidInputError(
                f"{place} has {count} tokens and {len(features[name])} numbers in {name!r}."
            )
    return features


def _documents(place: str, features: Features, job: ReadJob) -> Iterator[ForeignDocument]:
    inputs = features["inputs"]
    shape = (len(inputs), -1)
    logits = features["top_k_logits"].astype(np.float64).reshape(shape)
    ids = features["top_k_indices"].reshape(shape)
    make = rows_of_logprobs if job.settings.values == "logprobs" else rows_of_logits
    for start, stop in _parts(features):
        part = slice(start, stop)
        token_ids = inputs[part]
        _check_targets(place, features, start, stop)
        positions = np.arange(stop - start)
        rows = make(
            place,
            ids[part],
            logits[part],
            labels_of(token_ids, positions),
            job,
            top_k=job.settings.top_k,
        )
        # Documents are cut where a sequence ends, between any two tokens.
        yield ForeignDocument(place, token_ids, positions, rows, whole_text=False)


def _parts(features: Features) -> list[tuple[int, int]]:
    """Documents `[start, stop)` of a record, padding left out."""
    count = len(features["inputs"])
    numbers = features.get("inputs_segmentation")
    begins = np.zeros(count, np.bool_)
    if numbers is not None:
        begins[1:] |= np.diff(numbers) != 0
    elif "inputs_position" in features:
        begins[1:] |= features["inputs_position"][1:] == 0
    edges = [0, *np.flatnonzero(begins).tolist(), count]
    return [
        (start, stop)
        for start, stop in itertools.pairwise(edges)
        if stop > start and (numbers is None or numbers[start] > 0)
    ]


def _check_targets(place: str, features: Features, start: int, stop: int) -> None:
    """Check that the target of each token is the next one.

    Raises:
        InvalidInputError: it is not, so that the rows are of other tokens than `inputs`.
    """
    if "targets" not in features:
        return
    following: Ids = features["inputs"][start + 1 : stop]
    targets: Ids = features["targets"][start : stop - 1]
    counts = features.get("targets_segmentation", np.ones_like(features["inputs"]))
    wrong = np.flatnonzero((targets != following) & (counts[start : stop - 1] > 0))
    if len(wrong):
        at = int(wrong[0])
        raise InvalidInputError(
            f"{place} has target {targets[at]} at token {start + at}, and the next token is "
            f"{following[at]}. Its inputs are not the tokens that its rows predict."
        )
