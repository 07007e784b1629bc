"""Rows of a made-up teacher over real text, as the files of other tools hold them."""

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fusestore.cache.rows import Rows
from fusestore.interop.run import import_rows
from fusestore.interop.settings import ImportSettings
from fusestore.store.layout import Store
from fusestore.tokenizers.token_table import TokenTable
from fusestore.tokenizers.tokenizer import Tokenizer
from tests.helpers.tiny_models import TEXTS, train_tokenizer

K = 4


@dataclass(frozen=True)
class Teacher:
    """A tokenizer, four texts, and a whole distribution after each of their tokens."""

    tokenizer: Tokenizer
    tokens: TokenTable
    logits: np.ndarray

    @cached_property
    def logprobs(self) -> np.ndarray:
        """float64 [T, V]."""
        return self.logits - np.log(np.exp(self.logits).sum(axis=1, keepdims=True))

    @property
    def documents(self) -> list[slice]:
        offsets = self.tokens.document_offsets.tolist()
        return [slice(*bounds) for bounds in itertools.pairwise(offsets)]

    @property
    def ids(self) -> list[list[int]]:
        return [self.tokens.token_ids[part].tolist() for part in self.documents]

    def top(self, part: slice, k: int = K) -> tuple[np.ndarray, np.ndarray]:
        """Ids and log-probabilities [n, k] of the most likely tokens."""
        best = np.argsort(-self.logprobs[part], axis=1, kind="stable")[:, :k]
        return best, np.take_along_axis(self.logprobs[part], best, axis=1)

    @cached_property
    def labels(self) -> np.ndarray:
        """float64 [T], NaN in the last row of each document."""
        following = np.append(self.tokens.token_ids[1:], 0)
        values = self.logprobs[np.arange(len(following)), following]
        values[self.tokens.document_offsets[1:] - 1] = np.nan
        return values

    def expected(self, part: slice, k: int = K) -> Rows:
        """What a capture would keep, by the definition of each number."""
        ids, logprobs = self.top(part, k)
        tail = np.log(1 - np.exp(logprobs).sum(axis=1))
        return Rows(ids, logprobs, tail, self.labels[part])


def make_teacher(*, adds_bos: bool = False, seed: int = 0) -> Teacher:
    tokenizer = Tokenizer(train_tokenizer(TEXTS, 300, adds_bos=adds_bos), "teacher")
    texts = [f"Number {index}. {TEXTS[index]}" for index in range(4)]
    tokens = tokenizer.encode(texts, add_bos=adds_bos)
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(tokens.num_tokens, len(tokenizer))) * 3
    # Labels are among the entries about half of the time.
    following = np.append(tokens.token_ids[1:], 0)
    logits[np.arange(len(following)), following] += rng.choice([0.0, 8.0], len(following))
    return Teacher(tokenizer, tokens, logits)


def check_rows(actual: Rows, expected: Rows, *, atol: float, labels: bool = True) -> None:
    """Compare the rows of a document; of labels outside the entries nothing is compared."""
    np.testing.assert_array_equal(actual.ids, expected.ids)
    np.testing.assert_allclose(actual.logprobs, expected.logprobs, atol=atol)
    np.testing.assert_allclose(np.exp(actual.tail), np.exp(expected.tail), atol=4 * atol)
    if labels:
        np.testing.assert_allclose(actual.label_logprob, expected.label_logprob, atol=atol)


def written(path, teacher, *, profile, has_row, k, labels=True):
    """A store with cache `a` of the teacher's rows, those with `has_row`."""
    ids, logprobs = teacher.top(slice(None), k)
    arrays = {
        "token_ids": teacher.tokens.token_ids,
        "document_offsets": teacher.tokens.document_offsets,
        "has_row": has_row,
        "ids": ids[has_row],
        "logprobs": logprobs[has_row],
    }
    if labels:
        arrays["label_logprob"] = teacher.labels[has_row]
    np.savez(path / "given.npz", **arrays)
    store = Store.open(path / "store")
    chosen = ImportSettings(profile=profile)
    result = import_rows(store, "a", "numpy", path / "given.npz", chosen, model=teacher.tokenizer)
    return store, result.artifact
