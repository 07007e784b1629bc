"""Plain-array stand-ins for a cache and an alignment, and dense references to compare with."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from fusestore.cache.rows import Rows
from fusestore.tokenizers.token_table import TokenTable


@dataclass
class ArrayCache:
    """A distribution cache held in memory; `reads` counts the slices asked for."""

    tokens: TokenTable
    rows: Rows
    skipped: frozenset[int] = frozenset()
    reads: list[slice] = field(default_factory=list)

    @property
    def document_offsets(self):
        return self.tokens.document_offsets

    def read_tokens(self, start, stop):
        return self.tokens.read_tokens(start, stop)

    def __getitem__(self, rows):
        self.reads.append(rows)
        return Rows(
            self.rows.ids[rows],
            self.rows.logprobs[rows],
            self.rows.tail[rows],
            self.rows.label_logprob[rows],
        )


@dataclass
class ArrayAlignment:
    """Alignments of whole documents, one `(source_pos, kind)` each."""

    documents: list

    def for_documents(self, start, stop):
        parts = self.documents[start:stop]
        return (
            np.concatenate([np.empty(0, np.int32), *(position for position, _ in parts)]),
            np.concatenate([np.empty(0, np.uint8), *(kind for _, kind in parts)]),
        )


def _table(documents):
    """A TokenTable of `[(token id, end offset), …]` per document."""
    flat = [pair for document in documents for pair in document]
    return TokenTable(
        np.array([token for token, _ in flat], np.int32),
        np.array([end for _, end in flat], np.int32),
        np.cumsum([0, *(len(document) for document in documents)]).astype(np.int64),
    )


def _rows(distributions, width, labels):
    """Rows of `{token id: probability}`, what is missing to 1 being the tail."""
    ids = np.zeros((len(distributions), width), np.int32)
    logprobs = np.full((len(distributions), width), -np.inf, np.float32)
    tail = np.full(len(distributions), -np.inf, np.float32)
    for row, distribution in enumerate(distributions):
        for entry, (token, probability) in enumerate(distribution.items()):
            ids[row, entry] = token
            logprobs[row, entry] = np.log(probability)
        left = 1.0 - sum(distribution.values())
        if left > 1e-9:
            tail[row] = np.log(left)
    return Rows(ids, logprobs, tail, np.array(labels, np.float32))


def _random_rows(rng, num_rows, width, vocab_size, labels_end):
    """Random sparse rows: ties, −inf entries, all mass in the tail or none, grid-like mass."""
    ids = (
        np.stack([rng.permutation(vocab_size)[:width] for _ in range(num_rows)])
        if num_rows
        else (np.zeros((0, width)))
    )
    weight = np.exp(rng.normal(0, 2, (num_rows, width)))
    weight[rng.random((num_rows, width)) < 0.2] = 0.0
    weight[rng.random((num_rows, width)) < 0.2] = 1.0
    tail = np.exp(rng.normal(0, 2, num_rows))
    tail[rng.random(num_rows) < 0.2] = 0.0
    weight[rng.random(num_rows) < 0.1] = 0.0
    total = (weight.sum(axis=1) + tail) * np.exp(rng.uniform(-0.03, 0.03, num_rows))
    total[total == 0] = 1.0
    order = np.argsort(-weight, axis=1, kind="stable")
    with np.errstate(divide="ignore"):
        logprobs = np.log(np.take_along_axis(weight, order, 1) / total[:, None])
        log_tail = np.log(tail / total)
    label = -rng.exponential(2.0, num_rows)
    label[labels_end] = np.nan
    return Rows(
        np.take_along_axis(ids, order, 1).astype(np.int32),
        logprobs.astype(np.float32),
        log_tail.astype(np.float32),
        label.astype(np.float32),
    )


def _dense(ids, logprobs, tail, vocab_size):
    """Float64 [n, vocab_size + 1], the tail's mass last; entries simply summed, one by one."""
    dense = np.zeros((len(ids), vocab_size + 1))
    for row in range(len(ids)):
        for token, logprob in zip(ids[row], logprobs[row], strict=True):
            dense[row, token] += np.exp(np.float64(logprob))
        dense[row, -1] = np.exp(np.float64(tail[row]))
    return dense


def _project_dense(ids, logprobs, tail, target_id, vocab_size):
    """The definition of projection, dense: float64 [n, vocab_size + 1]."""
    result = np.zeros((len(ids), vocab_size + 1))
    for row in range(len(ids)):
        masses = [np.exp(np.float64(value)) for value in logprobs[row]]
        tail_mass = np.exp(np.float64(tail[row]))
        total = sum(masses) + tail_mass
        if total == 0:
            tail_mass = total = 1.0
        for token, mass in zip(ids[row], masses, strict=True):
            if mass > 0:
                landed = target_id[token]
                result[row, landed if landed >= 0 else vocab_size] += mass / total
        result[row, vocab_size] += tail_mass / total
    return result


def _assert_sparse_form(ids, logprobs, tail, full, k_out):
    """Sparse rows are the k_out largest of the dense `full`, in order, the rest in the tail."""
    vocab_size = full.shape[1] - 1
    assert ids.dtype == np.int32
    assert logprobs.dtype == tail.dtype == np.float32
    assert ids.shape == logprobs.shape == (len(full), k_out)
    np.testing.assert_allclose(_dense(ids, logprobs, tail, vocab_size).sum(axis=1), 1, atol=1e-5)
    for row in range(len(full)):
        wanted = np.sort(full[row, :-1])[::-1][:k_out]
        got = np.exp(logprobs[row].astype(np.float64))
        np.testing.assert_allclose(got[: len(wanted)], wanted, atol=1e-6, rtol=1e-5)
        assert np.all(got[len(wanted) :] == 0)
        present = np.isfinite(logprobs[row])
        np.testing.assert_allclose(got[present], full[row, ids[row, present]], atol=1e-6, rtol=1e-5)
        assert len(set(ids[row, present])) == present.sum()
        assert np.all(ids[row, ~present] == 0)
        assert not np.any(present[1:] & ~present[:-1])
        pairs = list(zip(-logprobs[row, present], ids[row, present], strict=True))
        assert pairs == sorted(pairs)
        np.testing.assert_allclose(
            np.exp(np.float64(tail[row])), 1 - wanted.sum(), atol=2e-6, rtol=1e-5
        )


@dataclass(frozen=True)
class Helpers:
    """What tests of this folder share."""

    cache = ArrayCache
    alignment = ArrayAlignment
    table = staticmethod(_table)
    rows = staticmethod(_rows)
    random_rows = staticmethod(_random_rows)
    dense = staticmethod(_dense)
    project_dense = staticmethod(_project_dense)
    assert_sparse_form = staticmethod(_assert_sparse_form)


@pytest.fixture(scope="session")
def helpers():
    return Helpers()
