"""Orders of ids: what they must be, and that they are learnt from what they are given."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.cache.id_order import NUM_CLASSES, learn_order
from fusestore.cache.kernels import number_ids
from fusestore.errors import InvalidInputError


def numbers_of(order, tokens, ids):
    present = np.zeros(ids.shape, np.float32)
    return number_ids(
        ids, present, order.token_class[tokens], order.class_numbers, order.id_to_rank
    )


@settings(max_examples=30, deadline=None)
@given(
    vocab_size=st.sampled_from([1, 2, 50, 5000]),
    rows=st.integers(0, 20),
    seed=st.integers(0, 1000),
)
def test_any_sample_gives_a_whole_order_and_the_same_again(vocab_size, rows, seed):
    generator = np.random.default_rng(seed)
    corpus = generator.integers(0, vocab_size, 30).astype(np.int32)
    tokens = generator.integers(0, vocab_size, rows).astype(np.int32)
    ids = generator.integers(0, vocab_size, (rows, 3)).astype(np.int32)
    present = generator.random((rows, 3)) < 0.7
    order = learn_order(vocab_size, corpus, tokens, ids, present)
    head = min(4096, vocab_size)
    assert sorted(order.rank_to_id) == list(range(vocab_size))
    assert order.class_order.shape == (NUM_CLASSES, head)
    assert all(sorted(row) == list(range(head)) for row in order.class_order)
    assert order.token_class.max() < NUM_CLASSES
    again = learn_order(vocab_size, corpus, tokens, ids, present)
    for field in dataclasses.fields(order):
        assert getattr(order, field.name).tobytes() == getattr(again, field.name).tobytes()


def test_ranks_fall_by_count_and_then_rise_by_id():
    ids = np.array([[4, 2], [4, 2], [4, 3]], np.int32)
    present = np.array([[1, 1], [1, 1], [1, 0]], bool)
    corpus, tokens = np.array([0, 3, 3], np.int32), np.array([0, 3, 3], np.int32)
    # Entries: 4 three times, 2 twice; the corpus adds 1/2 for each token.
    assert learn_order(6, corpus, tokens, ids, present).rank_to_id.tolist() == [4, 2, 3, 0, 1, 5]


def test_what_follows_each_token_gets_the_small_numbers():
    """Even after tokens that the sample does not hold, if the corpus tells what follows them."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, 2, 400).astype(np.int32)
    ids = 100 + 20 * tokens[:, None] + generator.permuted(np.tile(np.arange(20), (400, 1)), axis=1)
    ids = ids[:, :10].astype(np.int32)
    # Tokens 2 and 3 are not in the sample: in the corpus 2 is followed as 0 is, and 3 as 1 is.
    corpus = np.array([2, 103, 2, 107, 2, 111, 3, 122, 3, 127, 3, 131], np.int32)
    order = learn_order(200, corpus, tokens, ids, np.ones(ids.shape, bool))
    for token, first in ((0, 100), (1, 120), (2, 100), (3, 120)):
        wanted = np.arange(first, first + 20, dtype=np.int32)[None]
        assert numbers_of(order, np.array([token]), wanted).max() < 24, token


def test_ids_outside_the_vocabulary_are_refused():
    inside, outside = np.array([0], np.int32), np.array([7], np.int32)
    for corpus, tokens, ids in ((outside, inside, inside), (inside, inside, outside)):
        with pytest.raises(InvalidInputError, match="Token id 7"):
            learn_order(7, corpus, tokens, ids[:, None], np.ones((1, 1), bool))
    with pytest.raises(InvalidInputError, match="Token id -1"):
        learn_order(7, np.array([-1], np.int32), inside, inside[:, None], np.ones((1, 1), bool))


def test_learning_takes_no_memory_for_the_corpus():
    """Whose tokens may be a map of a file, larger than memory."""
    corpus = np.random.default_rng(0).integers(0, 50, 1 << 20).astype(np.int32)
    rows = corpus[:100], corpus[:300].reshape(100, 3), np.ones((100, 3), np.bool_)
    learn_order(50, corpus[:100], *rows)
    tracemalloc.start()
    learn_order(50, corpus, *rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < corpus.nbytes / 4


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("rank_to_id", lambda a: np.zeros_like(a), "exactly once"),
        ("rank_to_id", lambda a: a - 1, "exactly once"),
        ("class_order", lambda a: a + 1, "class 0 must hold"),
        ("class_order", lambda a: np.repeat(a, 2, axis=1), "do not fit"),
        ("token_class", lambda a: a + NUM_CLASSES, "there are 64"),
        ("token_class", lambda a: a[1:], "do not fit"),
    ],
)
def test_what_is_no_order_is_refused(capture, field, change, message):
    with pytest.raises(InvalidInputError, match=message):
        dataclasses.replace(capture.order, **{field: change(getattr(capture.order, field))})
