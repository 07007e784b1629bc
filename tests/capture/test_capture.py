"""`capture` with a tiny Llama: its rows against whole logits in float64, and what can go wrong."""

import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from fusestore.cache.reader import open_cache
from fusestore.cache.writer import CacheWriter
from fusestore.capture import row_capturer, selection
from fusestore.capture.device import top_k_on_device
from fusestore.capture.engines import transformers_engine
from fusestore.capture.engines.transformers_engine import TransformersEngine
from fusestore.capture.run import capture
from fusestore.capture.score_totals import skipped_documents
from fusestore.capture.settings import CaptureSettings, wants_bos
from fusestore.corpus.build import write_corpus
from fusestore.errors import (
    FingerprintMismatchError,
    IncompatibleError,
    InvalidInputError,
    NonFiniteError,
    NotFoundError,
    OutOfMemoryError,
    StorageError,
)
from fusestore.models.logits import logit_chunks
from fusestore.models.model import Model
from fusestore.progress import SilentReporter
from fusestore.store.codec import TAIL_STEP
from fusestore.store.layout import Store
from fusestore.tokenizers.token_table import TokenTable
from tests.helpers.tiny_models import TEXTS, make_llama, save_model, train_tokenizer

VOCAB_SIZE = 300
TOP_K = 7
EXACT = CaptureSettings(top_k=TOP_K, profile="lossless", dtype="float32")
SMALL_SHARDS = EXACT.model_copy(update={"rows_per_shard": 16, "rows_per_chunk": 8})
ROUNDING = 2e-5
"""Nats by which float32 logits of this model move with the shape of the batch."""


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, VOCAB_SIZE)


@pytest.fixture(scope="module")
def model():
    return make_llama(VOCAB_SIZE)


@pytest.fixture(scope="module")
def model_path(model, tokenizer, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("tiny") / "model", model, tokenizer)


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store")


@pytest.fixture
def corpus(store, tmp_path):
    return make_corpus(store, tmp_path)


def make_corpus(store, folder, texts=TEXTS):
    table = pl.DataFrame({"text": texts, "split": ["train"] * (len(texts) - 1) + ["held_out"]})
    table.write_parquet(folder / "texts.parquet")
    return write_corpus(store, "demo", folder / "texts.parquet", split_column="split")


def reference(model, cache, index):
    """Log-probabilities float64 [n, V] of a document: the whole logits, the document by itself."""
    ids = torch.from_numpy(cache.tokens.document(index)[0].astype(np.int64))
    double = make_double(model)
    with torch.inference_mode():
        return torch.log_softmax(double(ids[None]).logits[0], dim=-1).numpy(), ids.numpy()


def make_double(model):
    double = type(model)(model.config).double().eval()
    double.load_state_dict(model.state_dict())
    return double


def check_document(model, cache, index, error, tail_error):
    """A document's rows are the model's, up to the codec's errors in nats."""
    full, token_ids = reference(model, cache, index)
    rows = cache.document(index)
    expected = -np.sort(-full, axis=1)
    kept = expected[:, : cache.k]
    np.testing.assert_allclose(rows.logprobs, kept, atol=error + ROUNDING, rtol=0)
    # Ids of one stored log-probability stand in no order; otherwise only rounding swaps neighbours.
    own = np.take_along_axis(full, rows.ids.astype(np.int64), axis=1)
    np.testing.assert_allclose(own, kept, atol=2 * error + ROUNDING, rtol=0)
    np.testing.assert_allclose(own[:, 0], kept[:, 0], atol=ROUNDING, rtol=0)
    assert all(len(set(row)) == cache.k for row in rows.ids.tolist())
    tail = np.log(np.exp(expected[:, cache.k :]).sum(axis=1))
    np.testing.assert_allclose(rows.tail, tail, atol=tail_error + ROUNDING, rtol=0)
    labels = full[np.arange(len(full) - 1), token_ids[1:]]
    np.testing.assert_allclose(rows.label_logprob[:-1], labels, atol=ROUNDING, rtol=0)
    assert np.isnan(rows.label_logprob[-1])


@pytest.mark.parametrize(
    ("profile", "step", "error", "tail_error"),
    [
        ("lossless", None, 0, 0),
        ("compact", None, 1 / 32, TAIL_STEP / 2),
        ("compact", 1 / 256, 1 / 512, TAIL_STEP / 2),
        ("fast", 1 / 8, 1 / 16, TAIL_STEP / 2),
        ("fast", 0, 0, 0),
    ],
)
def test_rows_equal_float64_reference(
    store, corpus, model, model_path, profile, step, error, tail_error
):
    settings = CaptureSettings(top_k=TOP_K, profile=profile, logprob_step=step, dtype="float32")
    result = capture(store, "tiny", Model.open(model_path), corpus, settings)
    cache, computed = result.artifact, result.created
    assert computed
    assert len(cache) == cache.tokens.num_tokens
    assert cache.fingerprint.num_documents == len(TEXTS)
    assert not cache.skipped
    for index in range(len(TEXTS)):
        check_document(model, cache, index, error, tail_error)


def test_scores_are_sums_over_predicted_tokens(store, corpus, model, model_path):
    cache = capture(store, "tiny", Model.open(model_path), corpus, EXACT).artifact
    for split in ("train", "held_out"):
        nats, count, length = 0.0, 0, 0
        for index in corpus.split_documents(split).tolist():
            full, token_ids = reference(model, cache, index)
            nats -= full[np.arange(len(full) - 1), token_ids[1:]].sum()
            count += len(token_ids) - 1
            ends = cache.tokens.document(index)[1]
            length += ends[-1] - ends[0]
        scores = cache.manifest.scores
        assert scores[f"{split}.nats"] == pytest.approx(nats, abs=1e-3)
        assert scores[f"{split}.predicted_tokens"] == count
        assert scores[f"{split}.predicted_bytes"] == length


def test_padded_model_vocabulary_is_kept(store, corpus, tokenizer, tmp_path):
    """Ids above the tokenizer's are the model's to predict."""
    model = make_llama(VOCAB_SIZE + 20)
    with torch.no_grad():
        model.lm_head.weight[VOCAB_SIZE + 5] = 0.5 * model.lm_head.weight[:VOCAB_SIZE].sum(0)
    path = save_model(tmp_path / "padded", model, tokenizer)
    cache = capture(store, "padded", Model.open(path), corpus, EXACT).artifact
    assert cache.fingerprint.model.vocab_size == VOCAB_SIZE + 20
    assert cache.fingerprint.tokenizer_length == VOCAB_SIZE
    assert (cache[:].ids >= VOCAB_SIZE).any()
    for index in range(len(TEXTS)):
        check_document(model, cache, index, 0, 0)


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("policy", ["auto", "always", "never"])
def test_bos_policy(store, corpus, model, tmp_path, policy, adds_bos):
    tokenizer = train_tokenizer(TEXTS, VOCAB_SIZE, adds_bos=adds_bos)
    path = save_model(tmp_path / "bos", model, tokenizer)
    settings = EXACT.model_copy(update={"bos": policy})
    cache = capture(store, "tiny", Model.open(path), corpus, settings).artifact
    expected = policy == "always" or (policy == "auto" and adds_bos)
    assert cache.fingerprint.add_bos is expected
    for index, text in enumerate(TEXTS):
        token_ids = cache.tokens.document(index)[0].tolist()
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert token_ids == ([tokenizer.bos_token_id] if expected else []) + plain
    check_document(model, cache, 0, 0, 0)


def test_bos_only_of_a_tokenizer_that_has_one():
    assert wants_bos("auto", tokenizer_adds_bos=True, has_bos=True)
    assert not wants_bos("auto", tokenizer_adds_bos=False, has_bos=True)
    assert wants_bos("always", tokenizer_adds_bos=False, has_bos=True)
    assert not wants_bos("never", tokenizer_adds_bos=True, has_bos=True)


def check_same_rows(left, right):
    """Equal up to the rounding of float32 logits; ids may swap where entries tie."""
    np.testing.assert_allclose(left.logprobs, right.logprobs, atol=1e-5, rtol=0)
    np.testing.assert_allclose(left.tail, right.tail, atol=1e-5, rtol=0)
    np.testing.assert_allclose(left.label_logprob, right.label_logprob, atol=1e-5, rtol=0)
    swapped = left.ids != right.ids
    gaps = np.abs(np.diff(left.logprobs, axis=1, append=-np.inf))
    gaps = np.minimum(gaps, np.concatenate([np.full((len(gaps), 1), np.inf), gaps[:, :-1]], 1))
    assert (gaps[swapped] < 2e-5).all()


def test_shard_bounds_inside_documents_change_nothing(store, corpus, model_path):
    whole = capture(store, "whole", Model.open(model_path), corpus, EXACT).artifact
    cut = capture(store, "cut", Model.open(model_path), corpus, SMALL_SHARDS).artifact
    bounds = set(range(16, len(cut), 16))
    assert bounds - set(cut.document_offsets.tolist()), "no bound inside a document"
    check_same_rows(whole[:], cut[:])


@pytest.mark.parametrize(
    "batch_size",
    [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(100, marks=pytest.mark.slow)],
)
def test_batch_size_changes_nothing(store, corpus, model_path, batch_size):
    budget = capture(store, "budget", Model.open(model_path), corpus, EXACT).artifact
    settings = EXACT.model_copy(update={"batch_size": batch_size})
    cache = capture(store, "sized", Model.open(model_path), corpus, settings).artifact
    check_same_rows(budget[:], cache[:])


def test_bfloat16_is_close(store, corpus, model_path):
    exact = capture(store, "float32", Model.open(model_path), corpus, EXACT).artifact
    settings = EXACT.model_copy(update={"dtype": "bfloat16"})
    rounded = capture(store, "bfloat16", Model.open(model_path), corpus, settings).artifact
    assert rounded.fingerprint.dtype == "bfloat16"
    difference = np.nanmean(np.abs(exact[:].label_logprob - rounded[:].label_logprob))
    assert 0 < difference < 0.05


def contents(folder: Path):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


class Listener(SilentReporter):
    """Keeps what a run says and the progress it tells."""

    def __init__(self):
        self.lines = []
        self.progress = []

    def line(self, text):
        self.lines.append(text)

    @contextmanager
    def stage(self, title, unit):
        del title, unit
        yield lambda done, total: self.progress.append((done, total))


def test_complete_cache_is_not_made_again(store, corpus, model_path, tmp_path):
    capture(store, "tiny", Model.open(model_path), corpus, SMALL_SHARDS)
    before = contents(tmp_path / "store")
    listener = Listener()
    result = capture(store, "tiny", Model.open(model_path), corpus, SMALL_SHARDS, reporter=listener)
    cache, computed = result.artifact, result.created
    assert not computed
    assert not listener.progress
    assert len(cache) == cache.tokens.num_tokens
    assert contents(tmp_path / "store") == before


def test_resumed_cache_is_the_same_bytes(store, corpus, model_path, tmp_path):
    """What a killed run leaves: no manifest, a shard without receipt, one not begun."""
    cache = capture(store, "tiny", Model.open(model_path), corpus, SMALL_SHARDS).artifact
    folder = tmp_path / "store" / "caches" / "tiny"
    before = contents(folder)
    (folder / "manifest.json").unlink()
    (folder / "receipts" / "000001.json").unlink()
    (folder / "receipts" / "000003.json").unlink()
    for name in ("ids/c/3/0", "logprobs/c/3/0", "tail/c/3", "label_logprob/c/3"):
        (folder / name).unlink()
    with pytest.raises(NotFoundError, match="not complete"):
        open_cache(store, "tiny")
    listener = Listener()
    computed = capture(
        store, "tiny", Model.open(model_path), corpus, SMALL_SHARDS, reporter=listener
    ).created
    assert computed
    assert listener.progress[0] == (len(cache) - 32, len(cache))
    assert listener.progress[-1] == (len(cache), len(cache))
    assert contents(folder) == before


def test_other_settings_are_refused(store, corpus, model_path, tmp_path):
    capture(store, "tiny", Model.open(model_path), corpus, EXACT)
    before = contents(tmp_path / "store")
    for change in ({"top_k": 5}, {"profile": "compact"}, {"dtype": "bfloat16"}):
        with pytest.raises(FingerprintMismatchError, match=next(iter(change))):
            capture(store, "tiny", Model.open(model_path), corpus, EXACT.model_copy(update=change))
    assert contents(tmp_path / "store") == before


def test_other_model_is_refused(store, corpus, model_path, tokenizer, tmp_path):
    capture(store, "tiny", Model.open(model_path), corpus, EXACT)
    other = save_model(tmp_path / "other", make_llama(VOCAB_SIZE, seed=1), tokenizer)
    with pytest.raises(FingerprintMismatchError, match=r"model\.spec_digest"):
        capture(store, "tiny", Model.open(other), corpus, EXACT)


@pytest.fixture(scope="module")
def nan_model(model, tokenizer, tmp_path_factory):
    """Gives NaN from the first token on that only the fifth document holds."""
    token_ids = [set(tokenizer(text)["input_ids"]) for text in TEXTS]
    [only, *_] = sorted(token_ids[4].difference(*token_ids[:4], token_ids[5]))
    broken = make_llama(VOCAB_SIZE)
    with torch.no_grad():
        broken.model.embed_tokens.weight[only] = torch.nan
    return save_model(tmp_path_factory.mktemp("nan") / "model", broken, tokenizer)


def without_leases(files):
    """What a writer that ended leaves besides saying what it was at."""
    return {path: data for path, data in files.items() if path.parts[0] != "leases"}


def test_nan_stops_and_names_the_document(store, corpus, nan_model, tmp_path):
    with pytest.raises(NonFiniteError, match=r"document 4 \(.*, segment 0\).*on-nan skip"):
        capture(store, "tiny", Model.open(nan_model), corpus, SMALL_SHARDS)
    with pytest.raises(NotFoundError, match="not complete"):
        open_cache(store, "tiny")
    # The shards before it are kept, and a second run goes on from there.
    folder = tmp_path / "store" / "caches" / "tiny"
    before = without_leases(contents(folder))
    assert Path("receipts/000000.json") in before
    listener = Listener()
    with pytest.raises(NonFiniteError, match="document 4"):
        capture(store, "tiny", Model.open(nan_model), corpus, SMALL_SHARDS, reporter=listener)
    assert listener.progress[0][0] > 0
    assert without_leases(contents(folder)) == before


def test_nan_is_skipped_when_asked(store, corpus, model, nan_model):
    listener = Listener()
    settings = SMALL_SHARDS.model_copy(update={"on_nan": "skip"})
    cache = capture(
        store, "tiny", Model.open(nan_model), corpus, settings, reporter=listener
    ).artifact
    assert cache.skipped == {4}
    assert any("document 4" in line for line in listener.lines)
    rows = cache.document(4)
    assert np.isneginf(rows.logprobs).all()
    assert (rows.tail == 0).all()
    assert np.isnan(rows.label_logprob).all()
    for index in (0, 1, 2, 3, 5):
        check_document(model, cache, index, 0, 0)
    predicted = len(cache) - len(rows) - len(cache.tokens.document(5)[0]) - 4
    assert cache.manifest.scores["train.predicted_tokens"] == predicted


def check_refused(store, corpus, path, error, match, settings=EXACT):
    """Refused before anything of a cache is there."""
    with pytest.raises(error, match=match):
        capture(store, "tiny", Model.open(path), corpus, settings)
    assert store.names("caches") == []


def test_top_k_above_the_vocabulary(store, corpus, model_path):
    settings = EXACT.model_copy(update={"top_k": VOCAB_SIZE + 1})
    check_refused(store, corpus, model_path, InvalidInputError, "301.*vocabulary of 300", settings)


def test_whole_vocabulary_leaves_no_tail(store, corpus, model, model_path):
    settings = EXACT.model_copy(update={"top_k": VOCAB_SIZE})
    cache = capture(store, "tiny", Model.open(model_path), corpus, settings).artifact
    rows = cache.document(0)
    full, _ = reference(model, cache, 0)
    assert np.isneginf(rows.tail).all()
    np.testing.assert_allclose(rows.logprobs, -np.sort(-full, axis=1), atol=ROUNDING, rtol=0)


def test_tokenizer_longer_than_the_model(store, corpus, tokenizer, tmp_path):
    path = save_model(tmp_path / "narrow", make_llama(VOCAB_SIZE - 1), tokenizer)
    check_refused(store, corpus, path, IncompatibleError, "token 299 .* tiny has 299 ids")


def test_document_longer_than_the_context(store, corpus, tokenizer, tmp_path):
    path = save_model(tmp_path / "short", make_llama(VOCAB_SIZE, context=16), tokenizer)
    check_refused(
        store, corpus, path, IncompatibleError, r"Document 3 has .* context of tiny \(16\)"
    )


def test_batches_are_halved_when_memory_runs_out(store, corpus, model_path, monkeypatch):
    expected = capture(store, "roomy", Model.open(model_path), corpus, EXACT).artifact
    sizes = []
    real = logit_chunks

    def scarce(model, input_ids, **inputs):
        sizes.append(input_ids.numel())
        if input_ids.numel() > 75:
            raise torch.OutOfMemoryError("Tried to allocate 20 GiB.")
        return real(model, input_ids, **inputs)

    monkeypatch.setattr(transformers_engine, "logit_chunks", scarce)
    cache = capture(store, "scarce", Model.open(model_path), corpus, EXACT).artifact
    # The longest document fits; the batch after it does not, and no later one is as large.
    (refused,) = [index for index, size in enumerate(sizes) if size > 75]
    assert max(sizes[refused + 1 :]) <= sizes[refused] // 2
    check_same_rows(expected[:], cache[:])


def test_single_document_that_does_not_fit_is_an_error(store, corpus, model_path, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("Tried to allocate 20 GiB.")

    monkeypatch.setattr(transformers_engine, "logit_chunks", full)
    with pytest.raises(OutOfMemoryError, match=r"Document .* alone .* --max-length") as caught:
        capture(store, "tiny", Model.open(model_path), corpus, EXACT)
    assert isinstance(caught.value, MemoryError)


def test_other_failures_of_the_model_are_not_retried(store, corpus, model_path, monkeypatch):
    calls = []

    def broken(*_, **__):
        calls.append(1)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(transformers_engine, "logit_chunks", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        capture(store, "tiny", Model.open(model_path), corpus, EXACT)
    assert len(calls) == 1


def token_table(*documents):
    offsets = np.cumsum([0, *map(len, documents)], dtype=np.int64)
    token_ids = np.array([token for document in documents for token in document], np.int32)
    return TokenTable(token_ids, np.zeros_like(token_ids), offsets)


@pytest.mark.parametrize(
    "wrong",
    [
        {"dtype": "int4"},
        {"logprob_step": 2.0},
        {"profile": "tiny"},
        {"profile": "compact", "logprob_step": 0},
        {"selection": "sampled", "logprob_step": 1 / 16},
        {"profile": "lossless", "logprob_step": 1 / 16},
        {"rows_per_shard": 100, "rows_per_chunk": 30},
        {"top_k": 0},
        {"bos": "sometimes"},
    ],
)
def test_settings_that_no_cache_can_hold_are_refused_where_they_are_made(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CaptureSettings(**wrong)


def test_skipped_documents():
    tokens = token_table([1, 1, 1], [], [1], [1, 1], [1, 1])
    nan = np.nan
    label = np.array([-1, -2, nan, nan, nan, nan, -1, nan], np.float32)
    before = label.copy()
    assert skipped_documents(tokens, label) == [3]
    np.testing.assert_array_equal(label, before)
    assert skipped_documents(tokens, np.zeros(8, np.float32)) == []


def test_a_failed_write_ends_the_run_with_its_own_message(
    store, corpus, model_path, monkeypatch, tmp_path
):
    """At the next batch, not at the end; what was written before is kept and not made again."""
    written, run = [], []
    write, rows_of = CacheWriter.write_shard, row_capturer.RowCapturer.rows
    failed = threading.Event()

    def full(self, shard, rows):
        if shard >= 2:
            failed.set()
            raise StorageError(f"Shard {shard} could not be written: no space left on device.")
        written.append(shard)
        return write(self, shard, rows)

    def watched(self, start, stop, progress):
        run.append(start // 16)
        if start // 16 > 3:
            assert failed.wait(60)
        return rows_of(self, start, stop, progress)

    monkeypatch.setattr(CacheWriter, "write_shard", full)
    monkeypatch.setattr(row_capturer.RowCapturer, "rows", watched)
    with pytest.raises(StorageError, match="no space left") as caught:
        capture(store, "tiny", Model.open(model_path), corpus, SMALL_SHARDS)
    assert caught.value.__cause__ is None
    assert run[-1] <= 4, "the run went on"
    assert written == [0, 1]
    monkeypatch.undo()
    folder = tmp_path / "store" / "caches" / "tiny"
    listener = Listener()
    cache = capture(
        store, "tiny", Model.open(model_path), corpus, SMALL_SHARDS, reporter=listener
    ).artifact
    assert listener.progress[0] == (32, len(cache))
    whole = capture(store, "whole", Model.open(model_path), corpus, SMALL_SHARDS).artifact
    names = ["ids/c/3/0", "logprobs/c/3/0", "tail/c/3", "label_logprob/c/3"]
    other = tmp_path / "store" / "caches" / "whole"
    assert all((folder / name).read_bytes() == (other / name).read_bytes() for name in names)
    assert len(whole) == len(cache)


@pytest.mark.parametrize(
    "batch_size",
    [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(100, marks=pytest.mark.slow)],
)
def test_the_way_of_cuda_makes_the_same_rows(store, corpus, model_path, monkeypatch, batch_size):
    """Selection by tensor operations, one batch being computed while another is put away."""
    expected = capture(store, "cpu", Model.open(model_path), corpus, SMALL_SHARDS).artifact
    begin = TransformersEngine.__init__

    def begin_with_one_under_way(self, *arguments):
        begin(self, *arguments)
        self._batches_under_way = 1

    monkeypatch.setattr(TransformersEngine, "__init__", begin_with_one_under_way)
    monkeypatch.setattr(selection, "top_k_on_cpu", top_k_on_device)
    listener = Listener()
    settings = SMALL_SHARDS.model_copy(update={"batch_size": batch_size})
    cache = capture(
        store, "other", Model.open(model_path), corpus, settings, reporter=listener
    ).artifact
    check_same_rows(expected[:], cache[:])
    whole = len(cache)
    told = [done for done, total in listener.progress if total == whole]
    assert told == sorted(told)
    assert told[-1] == len(cache)
