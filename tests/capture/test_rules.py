"""Captures by `top-p` and `sampled` with a tiny Llama, from the logits to the stored rows."""

import numpy as np
import polars as pl
import pytest
import torch

from fusestore.cache.document_rows import document_rows
from fusestore.cache.rule import Rule
from fusestore.cache.verify import verify_cache
from fusestore.cache.writer import CacheWriter
from fusestore.capture.run import capture
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.build import write_corpus
from fusestore.errors import FingerprintMismatchError
from fusestore.models.model import Model
from fusestore.store.layout import Store
from tests.helpers.tiny_models import TEXTS, make_llama, save_model, train_tokenizer

VOCAB_SIZE = 300
DRAWS = 40
SAMPLED = CaptureSettings(selection="sampled", top_k=DRAWS, seed=4, dtype="float32")
TOP_P = CaptureSettings(selection="top-p", top_k=50, top_p=0.8, profile="lossless", dtype="float32")


@pytest.fixture(scope="module")
def model():
    return make_llama(VOCAB_SIZE)


@pytest.fixture(scope="module")
def model_path(model, tmp_path_factory):
    tokenizer = train_tokenizer(TEXTS, VOCAB_SIZE)
    return str(save_model(tmp_path_factory.mktemp("tiny") / "model", model, tokenizer))


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store")


@pytest.fixture
def corpus(store, tmp_path):
    pl.DataFrame({"text": TEXTS}).write_parquet(tmp_path / "texts.parquet")
    return write_corpus(store, "demo", tmp_path / "texts.parquet")


def probabilities(model, cache, index):
    """Float64 [n, V] of a document run by itself, and the float32 log-probabilities of labels."""
    ids = torch.from_numpy(cache.tokens.document(index)[0].astype(np.int64))
    with torch.inference_mode():
        return torch.softmax(model(ids[None]).logits[0].double(), dim=-1).numpy()


def contents(store, name):
    folder = store.cache(name).path
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_top_p_rows_are_the_nucleus(store, corpus, model, model_path):
    cache = capture(store, "tiny", Model.open(model_path), corpus, TOP_P).artifact
    assert cache.fingerprint.rule == Rule("top-p", 50, top_p=0.8)
    for index in range(len(TEXTS)):
        rows = cache.document(index)
        for row, full in enumerate(probabilities(model, cache, index)):
            expected = np.sort(full)[::-1]
            here = rows.logprobs[row] > -np.inf
            count = here.sum()
            assert here[:count].all()
            assert count == 50 or expected[:count].sum() > 0.8 - 1e-5
            assert count == 1 or expected[: count - 1].sum() < 0.8 + 1e-5
            np.testing.assert_allclose(np.exp(rows.logprobs[row, here]), expected[:count], 1e-4)
            assert np.exp(rows.tail[row]) == pytest.approx(expected[count:].sum(), abs=1e-5)
    assert verify_cache(cache.location) == []


def test_sampled_rows_are_shares_of_the_draws(store, corpus, model, model_path):
    cache = capture(store, "tiny", Model.open(model_path), corpus, SAMPLED).artifact
    assert cache.fingerprint.rule == Rule("sampled", DRAWS, seed=4)
    assert cache.fingerprint.logprob_step is None
    rows = cache[:]
    counts = np.exp(rows.logprobs.astype(np.float64)) * DRAWS
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-5)
    assert (np.rint(counts).sum(axis=1) == DRAWS).all()
    assert np.isneginf(rows.tail).all()
    settings = CaptureSettings(profile="lossless", dtype="float32")
    exact = capture(store, "exact", Model.open(model_path), corpus, settings).artifact
    np.testing.assert_allclose(rows.label_logprob, exact[:].label_logprob, atol=2e-6, rtol=0)
    assert verify_cache(cache.location) == []


@pytest.mark.parametrize("settings", [TOP_P, SAMPLED], ids=["top-p", "sampled"])
def test_every_profile_keeps_the_same_rows(store, corpus, model_path, settings):
    exact = capture(
        store,
        "l",
        Model.open(model_path),
        corpus,
        settings.model_copy(update={"profile": "lossless"}),
    ).artifact
    fast = settings.model_copy(update={"profile": "fast", "logprob_step": None})
    if settings.selection == "top-p":
        fast = fast.model_copy(update={"logprob_step": 0})
    mapped = capture(store, "f", Model.open(model_path), corpus, fast).artifact
    for field in ("ids", "logprobs", "tail", "label_logprob"):
        assert getattr(exact[:], field).tobytes() == getattr(mapped[:], field).tobytes()
    compact = settings.model_copy(update={"profile": "compact"})
    small = capture(store, "c", Model.open(model_path), corpus, compact).artifact
    assert verify_cache(small.location) == verify_cache(mapped.location) == []
    if settings.selection == "sampled":
        assert small[:].ids.tobytes() == exact[:].ids.tobytes()
        assert small[:].logprobs.tobytes() == exact[:].logprobs.tobytes()
    else:
        here = exact[:].logprobs > -np.inf
        np.testing.assert_array_equal(small[:].logprobs > -np.inf, here)
        np.testing.assert_array_equal(
            np.sort(np.where(here, small[:].ids, 0)), np.sort(np.where(here, exact[:].ids, 0))
        )


@pytest.mark.slow
def test_sampled_rows_estimate_the_model(store, corpus, model, model_path):
    """Over 60 seeds the mean of each document's rows is the model's distribution."""
    seeds = 60
    total = 0.0
    for seed in range(seeds):
        settings = SAMPLED.model_copy(update={"seed": seed})
        cache = capture(store, f"seed-{seed}", Model.open(model_path), corpus, settings).artifact
        rows = cache.document(3)
        dense = np.zeros((len(rows), VOCAB_SIZE))
        np.add.at(dense, (np.arange(len(rows))[:, None], rows.ids), np.exp(rows.logprobs))
        total = total + dense
    expected = probabilities(model, cache, 3)
    deviation = np.sqrt(expected * (1 - expected) / (DRAWS * seeds))
    off = (total / seeds - expected) / np.maximum(deviation, 1e-9)
    # Each is nearly normal where the counts are not small; 4.9 deviations: one in a million.
    assert np.abs(off[expected * DRAWS * seeds > 20]).max() < 4.9
    assert abs((off**2)[expected * DRAWS * seeds > 1].mean() - 1) < 0.1


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"batch_size": 1}, id="one by one", marks=pytest.mark.slow),
        pytest.param({"batch_size": 3}, id="by three"),
        pytest.param({"rows_per_shard": 16, "rows_per_chunk": 8}, id="many shards"),
    ],
)
def test_draws_do_not_depend_on_batches_or_shards(store, corpus, model_path, how):
    one = capture(store, "one", Model.open(model_path), corpus, SAMPLED).artifact
    other = capture(
        store, "other", Model.open(model_path), corpus, SAMPLED.model_copy(update=how)
    ).artifact
    # Rounding of the logits could move a step past a point, but hardly in so few draws.
    np.testing.assert_array_equal(one[:].ids, other[:].ids)
    np.testing.assert_array_equal(one[:].logprobs, other[:].logprobs)


def test_draws_do_not_depend_on_the_order_of_shards(
    store, corpus, model_path, tmp_path, monkeypatch
):
    settings = SAMPLED.model_copy(update={"rows_per_shard": 16, "rows_per_chunk": 8})
    capture(store, "tiny", Model.open(model_path), corpus, settings)
    missing = CacheWriter.missing_shards
    monkeypatch.setattr(CacheWriter, "missing_shards", lambda self: missing(self)[::-1])
    other_store = Store.open(tmp_path / "other")
    other_corpus = write_corpus(other_store, "demo", tmp_path / "texts.parquet")
    capture(other_store, "tiny", Model.open(model_path), other_corpus, settings)
    assert contents(other_store, "tiny") == contents(store, "tiny")


def test_another_seed_is_another_cache(store, corpus, model_path):
    one = capture(store, "tiny", Model.open(model_path), corpus, SAMPLED).artifact
    with pytest.raises(FingerprintMismatchError, match="seed: 4 stored, 5 requested"):
        capture(
            store, "tiny", Model.open(model_path), corpus, SAMPLED.model_copy(update={"seed": 5})
        )
    other = capture(
        store, "other", Model.open(model_path), corpus, SAMPLED.model_copy(update={"seed": 5})
    ).artifact
    assert not np.array_equal(one[:].ids, other[:].ids)


def test_skipped_documents_of_a_sampled_cache(store, corpus, tmp_path):
    model = make_llama(VOCAB_SIZE)
    tokenizer = train_tokenizer(TEXTS, VOCAB_SIZE)
    token_ids = [set(tokenizer(text)["input_ids"]) for text in TEXTS]
    [only, *_] = sorted(token_ids[4].difference(*token_ids[:4], token_ids[5]))
    with torch.no_grad():
        model.model.embed_tokens.weight[only] = torch.nan
    path = str(save_model(tmp_path / "broken", model, tokenizer))
    settings = SAMPLED.model_copy(update={"on_nan": "skip"})
    cache = capture(store, "tiny", Model.open(path), corpus, settings).artifact
    assert cache.skipped == {4}
    assert np.isneginf(cache.document(4).logprobs).all()
    assert verify_cache(cache.location) == []


def test_absent_entries_are_not_shown(store, corpus, model_path):
    settings = TOP_P.model_copy(update={"top_p": 1e-3})
    capture(store, "tiny", Model.open(model_path), corpus, settings)
    shown = document_rows(store, "tiny", 0, 5)
    assert len(shown.rows) == 5
    assert all(len(row.entries) == 1 for row in shown.rows)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"selection": "top-p"}, "needs top_p"),
        ({"top_p": 0.9}, "top_p is for selection top-p"),
        ({"selection": "sampled", "top_p": 0.9}, "top_p is for selection top-p"),
        ({"seed": 3}, "seed is for selection sampled"),
        ({"selection": "top-p", "top_p": 1.0}, "top_p"),
        ({"selection": "typical"}, "selection"),
    ],
)
def test_settings_that_do_not_go_together(wrong, match):
    with pytest.raises(ValueError, match=match):
        CaptureSettings(**wrong)


def test_a_seed_need_not_be_given():
    assert CaptureSettings(selection="sampled").rule == Rule("sampled", 32, seed=0)
