"""The order of ids: from a sample that the corpus alone decides, and settled once."""

from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.cache.reader import open_cache
from fusestore.cache.writer import stored_order
from fusestore.capture.run import capture
from fusestore.capture.sample import MAX_SAMPLE_ROWS, sample_slices, sample_tokens
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.build import write_corpus
from fusestore.errors import FingerprintMismatchError
from fusestore.models.model import Model
from fusestore.progress import SilentReporter
from fusestore.store.layout import Store
from fusestore.tokenizers.token_table import TokenTable
from tests.helpers.tiny_models import TEXTS, make_llama, save_model, train_tokenizer

SETTINGS = CaptureSettings(top_k=7, rows_per_shard=16, rows_per_chunk=8, dtype="float32")


def table(lengths):
    total = sum(lengths)
    return TokenTable(
        np.arange(total, dtype=np.int32),
        np.zeros(total, np.int32),
        np.cumsum([0, *lengths], dtype=np.int64),
    )


@settings(deadline=None)
@given(
    st.one_of(
        st.lists(st.integers(0, 3000), min_size=1, max_size=60),
        st.lists(st.integers(0, 3), min_size=1, max_size=40),
        st.just([500_000]),
        st.just([2000] * 300),
    ).filter(any)
)
def test_a_sample_is_a_small_spread_part(lengths):
    tokens = table(lengths)
    stretches = sample_slices(tokens)
    starts = tokens.document_offsets.tolist()
    assert all(stretch.start in starts and stretch.start < stretch.stop for stretch in stretches)
    assert [s.start for s in stretches] == sorted({s.start for s in stretches})
    taken = sum(stretch.stop - stretch.start for stretch in stretches)
    longest = max(256, -(-sum(lengths) // 16))
    available = sum(min(length, longest) for length in lengths)
    wanted = max(1, min(MAX_SAMPLE_ROWS, sum(lengths) // 16))
    assert max(1, wanted - longest) <= taken <= wanted or taken == available
    sample, kept = sample_tokens(tokens)
    assert kept.num_rows == sample.num_tokens
    assert sample.token_ids.tolist() == [i for s in stretches for i in range(s.start, s.stop)]
    assert sample.num_documents == len(stretches)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return str(save_model(folder / "model", make_llama(300), train_tokenizer(TEXTS, 300)))


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / "texts" / f"{number}.txt").write_text(text)
    return write_corpus(Store.open(tmp_path / "store"), "demo", tmp_path / "texts")


class Listener(SilentReporter):
    """Keeps what it is told of the progress."""

    def __init__(self):
        self.done = []

    @contextmanager
    def stage(self, *_):
        yield lambda done, _total: self.done.append(done)


def contents(location):
    return {name: (location / name).read_bytes() for name in location.sizes()}


def test_the_order_is_the_same_whatever_is_captured_first(corpus, model_path, tmp_path):
    store = Store.open(tmp_path / "store")
    whole = capture(store, "whole", Model.open(model_path), corpus, SETTINGS).artifact
    parts = capture(store, "whole-2", Model.open(model_path), corpus, SETTINGS).artifact
    before = contents(parts.location)
    # As if another worker had begun, with the last shard, and the first ones were still missing.
    for name in ("manifest.json", "receipts/000000.json", "ids/c/0/0", "receipts/tokens.json"):
        (parts.location / name).delete()
    capture(store, "whole-2", Model.open(model_path), corpus, SETTINGS)
    assert contents(parts.location) == before
    for name in ("rank_to_id/c/0", "token_class/c/0", "class_order/c/0/0"):
        assert before[name] == (whole.location / name).read_bytes()


def test_a_lost_order_is_made_again_or_refused(corpus, model_path, tmp_path, monkeypatch):
    store = Store.open(tmp_path / "store")
    cache = capture(store, "tiny", Model.open(model_path), corpus, SETTINGS).artifact
    before = contents(cache.location)
    (cache.location / "class_order/c/0/0").delete()
    assert stored_order(store, "tiny", cache.fingerprint) is None
    capture(store, "tiny", Model.open(model_path), corpus, SETTINGS)
    assert contents(cache.location) == before
    # Made again by a machine that rounds otherwise, it would not be the one that the shards need.
    (cache.location / "class_order/c/0/0").delete()
    monkeypatch.setattr("fusestore.capture.sample.MAX_SAMPLE_ROWS", 1)
    with pytest.raises(FingerprintMismatchError, match="another order of ids"):
        capture(store, "tiny", Model.open(model_path), corpus, SETTINGS)
    # Without its receipt nobody knows which it was: the shards are made again.
    monkeypatch.undo()
    (cache.location / "receipts/tokens.json").delete()
    (cache.location / "manifest.json").delete()
    reporter = Listener()
    capture(store, "tiny", Model.open(model_path), corpus, SETTINGS, reporter=reporter)
    assert 0 in reporter.done
    assert contents(cache.location) == before


def test_the_first_of_two_writers_settles_the_order(corpus, model_path, tmp_path, monkeypatch):
    store = Store.open(tmp_path / "store")
    cache = capture(store, "tiny", Model.open(model_path), corpus, SETTINGS).artifact
    before = contents(cache.location)
    # The other writer has written the order, and nothing else yet.
    for name in before:
        if not name.startswith(("rank_to_id/c", "token_class/c", "class_order/c", "fingerprint")):
            (cache.location / name).delete()
    monkeypatch.setattr("fusestore.capture.run.stored_order", lambda *_: None)
    with monkeypatch.context() as changed:
        changed.setattr("fusestore.capture.sample.MAX_SAMPLE_ROWS", 1)
        with pytest.raises(FingerprintMismatchError, match="Run the same command again"):
            capture(store, "tiny", Model.open(model_path), corpus, SETTINGS)
    capture(store, "tiny", Model.open(model_path), corpus, SETTINGS)
    assert contents(cache.location) == before


def test_fast_caches_need_no_sample(corpus, model_path, tmp_path, monkeypatch):
    monkeypatch.setattr("fusestore.capture.run.sample_tokens", None)
    store = Store.open(tmp_path / "store")
    settings = SETTINGS.model_copy(update={"profile": "fast"})
    capture(store, "fast", Model.open(model_path), corpus, settings)
    assert not (store.cache("fast") / "rank_to_id").exists()
    assert open_cache(store, "fast").fingerprint.profile == "fast"
