"""A capture proves its model before its first shard; a refused model leaves the store as it was."""

from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import torch

from fusestore.cache.rule import Rule
from fusestore.capture.engines import transformers_engine
from fusestore.capture.engines.transformers_engine import TransformersEngine
from fusestore.capture.estimate import estimate_capture
from fusestore.capture.row_capturer import RowCapturer
from fusestore.capture.run import capture
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.build import write_corpus
from fusestore.errors import IncompatibleError
from fusestore.models import logits
from fusestore.models.model import Model
from fusestore.store.layout import Store
from fusestore.tokenizers.token_table import TokenTable
from tests.helpers.changed_model import Changed, positions_after_padding
from tests.helpers.tiny_models import (
    TEXTS,
    longrope,
    make_llama,
    make_model,
    save_model,
    train_tokenizer,
)

VOCAB_SIZE = 300
TOP_5 = Rule("top-k", 5)
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


MODELS = {
    "one row": make_llama(100),
    "rows": make_model("gemma3_text", initializer_range=0.2, head_dim=8, sliding_window=7),
    "padded": longrope(switch=16),
    "one length": Changed(make_model("gpt2"), before=positions_after_padding),
    "one document": Changed(make_llama(100), after=lambda each: each + each.mean(0)),
}
LENGTHS = (7, 12, 7, 3, 22, 1, 31, 12)


def table():
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int64)
    ids = np.random.default_rng(0).integers(3, 100, offsets[-1]).astype(np.int32)
    return TokenTable(ids, np.zeros_like(ids), offsets)


def check_rows_are_of_each_document_alone(model, engine, tokens, rule=TOP_5):
    rows, bad = RowCapturer(engine, tokens, rule).rows(0, tokens.num_tokens, lambda *_: None)
    assert bad == []
    for document, (start, stop) in enumerate(pairwise(tokens.document_offsets.tolist())):
        ids = torch.from_numpy(tokens.document(document)[0].astype(np.int64))
        with torch.no_grad():
            logprobs = model(ids[None]).logits[0].double().log_softmax(-1)
        top = logprobs.topk(5)
        assert rows.ids[start:stop].tolist() == top.indices.tolist()
        np.testing.assert_allclose(rows.logprobs[start:stop], top.values, atol=1e-5)
        labels = logprobs[:-1].gather(1, ids[1:, None])[:, 0]
        np.testing.assert_allclose(rows.label_logprob[start : stop - 1], labels, atol=1e-5)


@pytest.mark.parametrize("chunk", [2**24, 2_000])
@pytest.mark.parametrize("batching", MODELS)
def test_rows_of_every_batching_are_those_of_each_document_alone(batching, chunk, monkeypatch):
    monkeypatch.setitem(logits.CHUNK_LOGITS, "cpu", chunk)
    model = MODELS[batching].eval()
    engine = TransformersEngine(model, None, batching)
    check_rows_are_of_each_document_alone(model, engine, table())


@pytest.mark.parametrize("batching", ["one row", "rows"])
def test_a_packed_batch_that_does_not_fit_is_divided_between_documents(batching, monkeypatch):
    model = MODELS[batching]
    sizes = []
    real = logits.logit_chunks

    def scarce(model, input_ids, **inputs):
        sizes.append(input_ids.numel())
        if input_ids.numel() > 40:
            raise torch.OutOfMemoryError("Tried to allocate 20 GiB.")
        return real(model, input_ids, **inputs)

    monkeypatch.setattr(transformers_engine, "logit_chunks", scarce)
    check_rows_are_of_each_document_alone(model, TransformersEngine(model, None, batching), table())
    assert sizes[0] > 40
    assert sum(size for size in sizes if size <= 40) >= sum(LENGTHS)


def test_longer_documents_do_not_change_shorter_ones():
    """LongRoPE takes the frequencies of a whole batch by its longest document."""
    model = MODELS["padded"]
    ids = torch.arange(3, 33)[None]
    with torch.no_grad():
        moved = (model(ids[:, :12]).logits - model(ids).logits[:, :12]).abs().max()
    assert moved > 0.1
    rows = TransformersEngine(model, None, "rows")
    check_rows_are_of_each_document_alone(model, rows, table())
