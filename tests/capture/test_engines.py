"""The protocol of engines: what is declared, what is checked, and an engine of a plugin."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusestore import plugins
from fusestore.cache.rows import Rows
from fusestore.cache.rule import Rule
from fusestore.cache.verify import verify_cache
from fusestore.capture.engines import engine_registry
from fusestore.capture.engines.engine_registry import (
    check_engine,
    engine_capabilities,
    engine_class,
    engine_names,
    register_engine,
)
from fusestore.capture.engines.protocol import Capabilities, Document, DocumentRows, Engine
from fusestore.capture.engines.row_checks import check_engine_rows
from fusestore.capture.engines.served_rows import BadAnswerError, rows_of_entries
from fusestore.capture.row_capturer import RowCapturer
from fusestore.errors import EngineError, IncompatibleError, InvalidInputError
from fusestore.fuse.recipe import Recipe
from fusestore.fuse.resolve import find_inputs
from fusestore.testing import transformers_rows
from fusestore.tokenizers.token_table import TokenTable
from tests.helpers.engine_job import check_same, make_job


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return make_job(tmp_path_factory.mktemp("job"))


@pytest.fixture
def registered(monkeypatch):
    """Registers engines for one test."""
    monkeypatch.setattr(engine_registry, "_ENGINES", dict(engine_registry._ENGINES))
    monkeypatch.setattr(plugins, "_loaded", dict(plugins._loaded))
    return register_engine


def top_k(logprobs, token_ids, k, known_tail=True):
    """Rows of whole log-probabilities [n, V], the plain way."""
    logprobs = logprobs.astype(np.float64)
    order = np.argsort(-logprobs, axis=1, kind="stable")
    kept = np.take_along_axis(logprobs, order, axis=1)
    tail = np.logaddexp.reduce(kept[:, k:], axis=1)
    labels = np.roll(token_ids, -1)
    return Rows(
        order[:, :k].astype(np.int32),
        kept[:, :k].astype(np.float32),
        (tail if known_tail else np.full_like(tail, np.nan)).astype(np.float32),
        logprobs[np.arange(len(labels)), labels].astype(np.float32),
    )


def plain_engine(model, **capabilities):
    """An engine that gives top-k rows of a model, a document at a time, in two spans."""
    declared = Capabilities(**capabilities)

    class Plain(Engine):
        capabilities = declared

        @classmethod
        def start(cls, job):
            return cls()

        def run(self, documents, rule):
            assert rule.name == "top-k"
            for document in documents:
                ids = document.token_ids
                logprobs = transformers_rows(model)(ids.tolist())
                rows = top_k(logprobs, ids, rule.top_k, declared.known_tail)
                cut = len(rows) // 2
                for part in (slice(cut, None), slice(0, cut)):
                    values = Rows(*(each[part] for each in vars(rows).values()))
                    yield DocumentRows(document, part.start, values)

    return Plain


def test_what_is_declared_is_what_the_classes_have():
    assert {"transformers", "vllm", "sglang"} <= set(engine_names())
    for name in engine_names():
        assert engine_class(name).capabilities == engine_capabilities(name)


def test_an_unknown_engine_is_refused_with_the_nearest(job):
    with pytest.raises(InvalidInputError, match=r"Did you mean .*vllm"):
        job.capture("unknown", engine="vlm")
    with pytest.raises(InvalidInputError, match="named 'vllm' already"):
        register_engine("vllm")


@pytest.mark.parametrize(
    ("capabilities", "rule", "error", "says"),
    [
        ({"max_top_k": 20}, Rule("top-k", 32), InvalidInputError, "at most 20 entries"),
        ({"exact_label": False}, Rule("top-k", 4), IncompatibleError, "next token"),
        ({"temperature_free": False}, Rule("top-k", 4), IncompatibleError, "temperature"),
        ({}, Rule("sampled", 4, seed=0), IncompatibleError, "whole rows"),
        ({"known_tail": False}, Rule("top-p", 4, 0.5), IncompatibleError, "mass outside"),
    ],
)
def test_what_an_engine_cannot_do_is_said_first(registered, capabilities, rule, error, says):
    registered("limited")(plain_engine(None, **capabilities))
    with pytest.raises(error, match=says):
        check_engine("limited", rule)


@pytest.mark.parametrize("rule", [{}, {"selection": "top-p", "top_p": 0.6}])
def test_an_engine_of_a_plugin_makes_the_same_cache(job, registered, rule):
    registered("plain")(plain_engine(job.model))
    name = f"plain-{len(rule)}"
    cache = job.capture(name, engine="plain", **rule)
    expected = job.capture(f"own-{len(rule)}", dtype="float32", **rule)
    check_same(expected[:], cache[:])
    assert cache.fingerprint.engine == "plain"
    assert verify_cache(cache.location) == []


@pytest.mark.parametrize(
    "storage",
    [{}, {"profile": "compact"}, {"profile": "fast"}, {"profile": "fast", "logprob_step": 0}],
)
def test_a_tail_that_is_not_known_stays_unknown(job, registered, storage):
    registered("tailless")(plain_engine(job.model, known_tail=False))
    name = "tailless-" + "-".join(map(str, storage.values()))
    cache = job.capture(name, engine="tailless", **storage)
    assert not cache.fingerprint.known_tail
    assert np.isnan(cache[:].tail).all()
    assert cache.to_polars(0)["tail"].null_count() == len(cache.document(0))
    assert verify_cache(cache.location) == []
    recipe = Recipe(sources=[name], split="train", top_k=4, window_length=8)
    with pytest.raises(IncompatibleError, match="engine tailless"):
        find_inputs(job.store, recipe)


def test_a_row_that_is_left_out_is_found(job):
    class Forgetful(plain_engine(job.model)):
        def run(self, documents, rule):
            for part in super().run(documents, rule):
                if part.position:
                    yield part

    ids = np.arange(10, dtype=np.int32)
    tokens = TokenTable(ids, np.zeros_like(ids), np.array([0, 10]))
    with pytest.raises(EngineError, match="gave no row 0"):
        RowCapturer(Forgetful(), tokens, Rule("top-k", 3)).rows(0, 10, lambda *_: None)


WRONG = {
    "rise": lambda rows: rows.logprobs[2].sort(),
    "NaN": lambda rows: rows.logprobs.__setitem__((2, 1), np.nan),
    "twice": lambda rows: rows.ids.__setitem__((2, 1), rows.ids[2, 0]),
    "below 0": lambda rows: rows.ids.__setitem__((2, 1), -1),
    "add up": lambda rows: rows.tail.__setitem__(2, 0.0),
    "that of its entry": lambda rows: rows.label_logprob.__setitem__(2, -0.01),
    "NaN or above 0": lambda rows: rows.label_logprob.__setitem__(2, np.nan),
    "tail is NaN": lambda rows: rows.tail.__setitem__(2, np.nan),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_row_that_cannot_be_right_is_refused(what):
    rng = np.random.default_rng(0)
    token_ids = rng.integers(0, 5, 6).astype(np.int32)
    logprobs = np.log(rng.dirichlet(np.ones(8), 6))
    token_ids[3] = logprobs[2].argmax()
    rows = top_k(logprobs, token_ids, 7)
    part = DocumentRows(Document(4, 0, token_ids), 0, rows)
    check_engine_rows(part, 7, known_tail=True)
    WRONG[what](rows)
    with pytest.raises(EngineError, match=rf"Row 2 of document 4 cannot be right: .*{what}"):
        check_engine_rows(part, 7, known_tail=True)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.booleans(), st.booleans())
def test_rows_of_entries_are_the_most_likely(seed, k, own_apart, has_ties):
    """Against the plain way, from entries in any order, with the own token among them or apart."""
    rng = np.random.default_rng(seed)
    vocab_size, n = int(rng.integers(max(k, 2), 12)), int(rng.integers(1, 6))
    logits = rng.normal(0, 3, (n, vocab_size))
    logits = logits.round() if has_ties else logits
    logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    labels = rng.integers(0, vocab_size, n)
    expected = top_k(logprobs, np.roll(labels, 1).astype(np.int32), k)
    ids, values = (np.full((n, k + 1), fill) for fill in (-1, -np.inf))
    ids = ids.astype(np.int64)
    for row in range(n):
        entries = np.argsort(-logprobs[row], kind="stable")[:k].tolist()
        if not own_apart and labels[row] not in entries:
            entries.append(int(labels[row]))
        rng.shuffle(entries)
        ids[row, : len(entries)] = entries
        values[row, : len(entries)] = logprobs[row, entries]
    own = logprobs[np.arange(n), labels] if own_apart else None
    rows = rows_of_entries(ids, values, labels, own, k, vocab_size)
    np.testing.assert_array_equal(rows.ids, expected.ids)
    np.testing.assert_allclose(rows.logprobs, expected.logprobs, rtol=1e-6)
    np.testing.assert_allclose(np.exp(rows.tail), np.exp(expected.tail), atol=1e-6)
    np.testing.assert_allclose(rows.label_logprob, expected.label_logprob, rtol=1e-6)
    if k < vocab_size:
        with pytest.raises(BadAnswerError, match="the model has"):
            rows_of_entries(ids, values, labels, own, k, int(ids.max()))
