"""A capture proves its model before its first shard; a refused model leaves the store as it was."""

from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import torch

from fusestore.cache.rule import Rule
from fusestore.capture.engines.transformers_engine import TransformersEngine
from fusestore.capture.estimate import estimate_capture
from fusestore.capture.row_capturer import RowCapturer
from fusestore.capture.run import capture
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.build import write_corpus
from fusestore.errors import IncompatibleError
from fusestore.models.model import Model
from fusestore.store.layout import Store
from fusestore.tokenizers.token_table import TokenTable
from tests.helpers.changed_model import Changed, positions_after_padding
from tests.helpers.tiny_models import (
    TEXTS,
    make_llama,
    make_model,
    save_model,
    train_tokenizer,
)

VOCAB_SIZE = 300
EXACT = CaptureSettings(top_k=7, profile="lossless", dtype="float32", device="cpu")
EXTRA = "<extra>"


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store")


@pytest.fixture
def corpus(store, tmp_path):
    return make_corpus(store, tmp_path, TEXTS)


def make_corpus(store, folder, texts):
    pl.DataFrame({"text": texts}).write_parquet(folder / "texts.parquet")
    return write_corpus(store, "demo", folder / "texts.parquet")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder of a BERT as its class for masked language models saves it."""
    model = make_model("bert", vocab_size=VOCAB_SIZE, initializer_range=0.2)
    model.config.architectures = ["BertForMaskedLM"]
    tokenizer = train_tokenizer(TEXTS, VOCAB_SIZE)
    return save_model(tmp_path_factory.mktemp("models") / "bert", model, tokenizer)


@pytest.mark.parametrize("profile", ["compact", "lossless", "fast"])
def test_a_model_that_reads_both_ways_leaves_no_cache(store, corpus, bert, profile):
    settings = EXACT.model_copy(update={"profile": profile})
    with pytest.raises(IncompatibleError, match=r"masked \(BertLMHeadModel\) is no causal"):
        capture(store, "masked", Model.open(bert), corpus, settings)
    assert store.names("caches") == []


def test_an_estimate_refuses_it_too(store, corpus, bert):
    with pytest.raises(IncompatibleError, match="no causal language model"):
        estimate_capture(store, "masked", Model.open(bert), corpus, EXACT)


@pytest.fixture(scope="module")
def wider(tmp_path_factory):
    """A model whose tokenizer has one id more than its output."""
    tokenizer = train_tokenizer(TEXTS, VOCAB_SIZE)
    tokenizer.add_tokens([EXTRA])
    assert len(tokenizer) == VOCAB_SIZE + 1
    folder = tmp_path_factory.mktemp("models") / "wider"
    return save_model(folder, make_llama(VOCAB_SIZE), tokenizer)


def test_an_id_that_no_text_has_may_be_beyond_the_model(store, corpus, wider):
    cache = capture(store, "wider", Model.open(wider), corpus, EXACT).artifact
    assert cache.fingerprint.tokenizer_length == VOCAB_SIZE + 1
    assert np.isfinite(cache.document(0).logprobs).all()
    assert not capture(store, "wider", Model.open(wider), corpus, EXACT).created


def test_an_id_beyond_the_model_is_named(store, wider, tmp_path):
    texts = [*TEXTS[:2], f"Peace {EXTRA} abroad.", TEXTS[3]]
    corpus = make_corpus(store, tmp_path, texts)
    match = r"Document 2 \(.*texts.parquet.*\) holds token 300 \('<extra>'\), .* wider has 300 ids"
    with pytest.raises(IncompatibleError, match=match):
        capture(store, "wider", Model.open(wider), corpus, EXACT)
    with pytest.raises(IncompatibleError, match=match):
        estimate_capture(store, "wider", Model.open(wider), corpus, EXACT)
    assert store.names("caches") == []


@pytest.mark.parametrize("batching", ["one length", "one document"])
def test_rows_that_batches_would_move_are_those_of_each_document_alone(batching):
    model = {
        "one length": lambda: Changed(make_model("gpt2"), before=positions_after_padding),
        "one document": lambda: Changed(make_llama(100), after=lambda each: each + each.mean(0)),
    }[batching]().eval()
    rng = np.random.default_rng(0)
    lengths = [7, 12, 7, 3, 12, 1]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = rng.integers(3, 100, offsets[-1]).astype(np.int32)
    tokens = TokenTable(ids, np.zeros_like(ids), offsets)
    capturer = RowCapturer(TransformersEngine(model, None, batching), tokens, Rule("top-k", 5))
    rows, bad = capturer.rows(0, len(ids), lambda *_: None)
    assert bad == []
    for start, stop in pairwise(offsets.tolist()):
        document = torch.from_numpy(ids[start:stop].astype(np.int64))[None]
        with torch.no_grad():
            logprobs = model(document).logits[0].double().log_softmax(-1)
        top = logprobs.topk(5)
        assert rows.ids[start:stop].tolist() == top.indices.tolist()
        np.testing.assert_allclose(rows.logprobs[start:stop], top.values, atol=1e-5)
