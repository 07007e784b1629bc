"""A tiny model, a corpus and a reference cache, for engines to be compared with."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fusestore.cache.reader import open_cache
from fusestore.cache.rows import Rows
from fusestore.capture.run import capture
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.build import write_corpus
from fusestore.corpus.corpus import Corpus
from fusestore.models.model import Model
from fusestore.store.layout import Store
from tests.helpers.tiny_models import TEXTS, make_llama, save_model, train_tokenizer

VOCAB_SIZE = 300
TOP_K = 7
ROUNDING = 2e-5
"""Nats by which float32 log-probabilities of this model move with the shape of the batch."""


@dataclass(frozen=True)
class EngineJob:
    """Attributes: the model that engines run, its folder, and what transformers captured."""

    model: object
    folder: Path
    store: Store
    corpus: Corpus
    expected: Rows

    @property
    def tokens(self):
        return open_cache(self.store, "reference").tokens

    def expected_rows(self, start, stop):
        return Rows(*(each[start:stop].copy() for each in vars(self.expected).values()))

    def settings(self, **changes):
        return CaptureSettings(
            **{
                "top_k": TOP_K,
                "profile": "lossless",
                "rows_per_shard": 64,
                "rows_per_chunk": 16,
                **changes,
            }
        )

    def capture(self, name, reporter=None, **changes):
        return capture(
            self.store,
            name,
            Model.open(str(self.folder)),
            self.corpus,
            self.settings(**changes),
            reporter=reporter,
        ).artifact


def make_job(folder: Path) -> EngineJob:
    model = make_llama(VOCAB_SIZE)
    save_model(folder / "model", model, train_tokenizer(TEXTS, VOCAB_SIZE))
    file = folder / "texts.jsonl"
    texts = [f"{text} {number}" for number in range(2) for text in TEXTS]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    store = Store.open(folder / "store")
    corpus = write_corpus(store, "demo", file)
    job = EngineJob(model, folder / "model", store, corpus, None)
    expected = job.capture("reference", dtype="float32")[:]
    return EngineJob(model, folder / "model", store, corpus, expected)


def check_same(expected: Rows, rows: Rows) -> None:
    """Rows are equal up to rounding; ids where neighbors are further apart than that."""
    np.testing.assert_allclose(rows.logprobs, expected.logprobs, atol=ROUNDING, rtol=0)
    apart = np.diff(expected.logprobs, axis=1, append=-np.inf) < -2 * ROUNDING
    settled = apart & np.pad(apart, ((0, 0), (1, 0)), constant_values=True)[:, :-1]
    np.testing.assert_array_equal(rows.ids[settled], expected.ids[settled])
    tail, other = (np.exp(each.astype(np.float64)) for each in (rows.tail, expected.tail))
    np.testing.assert_allclose(tail, other, atol=ROUNDING, rtol=0)
    np.testing.assert_allclose(rows.label_logprob, expected.label_logprob, atol=ROUNDING, rtol=0)
