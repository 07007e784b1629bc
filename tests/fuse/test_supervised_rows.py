"""Rows that no fusion of a corpus of conversations reads: it is the same without them."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fusestore.align.kinds import ALIGNMENT_METHODS
from fusestore.align.tokens.pairing import align_table
from fusestore.align.vocabulary.first_tokens import first_tokens
from fusestore.align.vocabulary.vocabulary_map import map_vocabulary
from fusestore.cache.rows import Rows, absent_rows
from fusestore.errors import InvalidInputError
from fusestore.fuse.fusion import prepare
from fusestore.fuse.inputs import SourceInput
from fusestore.fuse.observation import read_chunks
from fusestore.fuse.recipe import Recipe
from fusestore.fuse.shard import fuse_rows
from fusestore.tokenizers.conversation import TRAIN_ON, Conversation
from fusestore.tokenizers.supervision import Supervision, supervised_ranges
from fusestore.tokenizers.token_table import TokenTable
from fusestore.tokenizers.tokenizer import Tokenizer, chat_encoder
from tests.helpers.chat_models import chat_tokenizer

MODELS = {"chatml": False, "instructions": True, "headers": False, "prefixed": False}
WIDTH = 6

contents = st.text(st.sampled_from("ab e\n.é🙂ct"), min_size=1, max_size=25)
conversations = st.lists(
    st.lists(st.tuples(contents, contents), min_size=1, max_size=3), min_size=1, max_size=3
)


@pytest.fixture(scope="module")
def models():
    """Encoders of conversations and vocabularies, with the maps between them."""
    opened = {
        name: Tokenizer(chat_tokenizer(name, pieces=pieces, vocab_size=330 - 7 * len(name)), name)
        for name, pieces in MODELS.items()
    }
    encoders = {name: chat_encoder(tokenizer, {}) for name, tokenizer in opened.items()}
    vocabularies = {name: tokenizer.vocabulary for name, tokenizer in opened.items()}
    maps = {
        (source, target): map_vocabulary(vocabularies[source], vocabularies[target], "prefix")
        for source in MODELS
        for target in MODELS
    }
    return encoders, vocabularies, maps


def random_source(helpers, rng, models, name, target, tables, supervision, method):
    """A source with random rows, and the same with those that may be used alone."""
    _, vocabularies, maps = models
    tokens = tables[name]
    last = tokens.document_offsets[1:] - 1
    rows = helpers.random_rows(rng, tokens.num_tokens, WIDTH, len(vocabularies[name]), last)
    used = supervision.used_rows(tokens, np.arange(tokens.num_documents))
    few = absent_rows(len(rows), WIDTH)
    for field in fields(Rows):
        getattr(few, field.name)[used] = getattr(rows, field.name)[used]
    source = SourceInput(name, helpers.cache(tokens, rows), "cache", "corpus")
    if name != target:
        pair = vocabularies[name], vocabularies[target]
        position, kind = align_table(tokens, tables[target], *pair, method)
        bounds = tables[target].document_offsets[1:-1]
        source = replace(
            source,
            target_id=maps[name, target].target_id,
            alignment=helpers.alignment(
                list(zip(np.split(position, bounds), np.split(kind, bounds), strict=True))
            ),
            spelling=pair[0].spelling,
            first_tokens=first_tokens(pair[0].spelling, pair[1]),
        )
    return source, replace(source, cache=helpers.cache(tokens, few))


def check_equal(first, second):
    """Equal to the bit, in every field that is not the inputs themselves."""
    for name, value in vars(first).items():
        other = vars(second)[name]
        if name == "fusion":
            continue
        if hasattr(value, "__dataclass_fields__"):
            check_equal(value, other)
        elif isinstance(value, dict):
            assert list(value) == list(other)
            for key, pair in value.items():
                for one, two in zip(pair, other[key], strict=True):
                    np.testing.assert_array_equal(one, two)
        elif isinstance(value, list) and hasattr(value[0], "__dataclass_fields__"):
            for one, two in zip(value, other, strict=True):
                check_equal(one, two)
        elif isinstance(value, tuple):
            for one, two in zip(value, other, strict=True):
                np.testing.assert_array_equal(one, two)
        else:
            np.testing.assert_array_equal(value, other)


@pytest.mark.slow
@hypothesis_settings(deadline=None, max_examples=60)
@given(
    drawn=conversations,
    target=st.sampled_from(sorted(MODELS)),
    train_on=st.sampled_from(TRAIN_ON),
    method=st.sampled_from(ALIGNMENT_METHODS),
    strategy=st.sampled_from(["uniform", "mince", "avgce", "packllm"]),
    granularity=st.sampled_from(["document", "window", "token"]),
    score=st.sampled_from(["bits_per_byte", "aligned_ce", "token_ce"]),
    unaligned=st.sampled_from(["skip", "label", "target"]),
    seed=st.integers(0, 2**20),
)
def test_a_fusion_is_the_same_without_rows_that_are_not_supervised(
    helpers, models, drawn, target, train_on, method, seed, **settings
):
    chats = [
        Conversation(
            tuple(
                {"role": role, "content": text}
                for pair in turns
                for role, text in zip(("user", "assistant"), pair, strict=True)
            )
        )
        for turns in drawn
    ]
    encoders, vocabularies, _ = models
    try:
        tables = {name: each.encode(chats, str) for name, each in encoders.items()}
    except InvalidInputError:
        assume(False)
    supervision = Supervision.of([supervised_ranges(chat, train_on) for chat in chats])
    rng = np.random.default_rng(seed)
    sides = zip(
        *(
            random_source(helpers, rng, models, name, target, tables, supervision, method)
            for name in MODELS
        ),
        strict=True,
    )
    recipe = Recipe(
        sources=list(MODELS),
        corpus="c",
        target="a" * 64,
        target_cache=target if settings["unaligned"] == "target" else None,
        kinds=["span", "inside", "mined"],
        top_k=8,
        window_length=16,
        packing="stream",
        **settings,
    )
    fusions = [
        prepare(
            recipe,
            sources,
            target_tokens=tables[target],
            tokens_digest="tokens",
            documents=np.arange(len(chats)),
            vocab_size=len(vocabularies[target]),
            corpus_digest="corpus",
            target_cache=next(s for s in sources if s.name == target)
            if recipe.target_cache
            else None,
            supervision=supervision,
        )
        for sides_of in [list(sides)]
        for sources in sides_of
    ]
    (rows, totals), (expected, expected_totals) = (
        fuse_rows(fusion, 0, fusion.num_tokens) for fusion in fusions
    )
    check_equal(expected, rows)
    assert totals == expected_totals
    # A row of an answer is used by all that have one tokenizer, so the comparison is not empty.
    labels = rows.next_ids >= 0
    assert not labels.any() or (rows.kind[labels] > 0).any()
    chunks = [list(read_chunks(fusion, ["window", "token"])) for fusion in fusions]
    for one, two in zip(*chunks, strict=True):
        check_equal(one, two)


def test_which_rows_may_be_used():
    """By hand: a turn from byte 4 to 8, with its end at 9."""
    ends = [0, 2, 3, 4, 4, 6, 6, 8, 9, 9, 11]
    tokens = TokenTable(
        np.zeros(len(ends), np.int32), np.array(ends, np.int32), np.array([0, len(ends)])
    )
    supervision = Supervision.of([[(4, 9)]])
    used = supervision.used_rows(tokens, np.array([0]))
    # Rows before bytes 4 to 9, those between tokens without bytes, and no row of the header.
    assert np.flatnonzero(used).tolist() == [4, 5, 6, 7, 8]
    straddling = TokenTable(
        np.zeros(4, np.int32), np.array([1, 3, 6, 11], np.int32), np.array([0, 4])
    )
    # A token that begins before the range, and one that ends after it.
    assert supervision.used_rows(straddling, np.array([0])).tolist() == [False, True, True, False]
    two = Supervision.of([[(0, 3)], [], [(0, 3)]])
    short = TokenTable(
        np.zeros(5, np.int32), np.array([0, 3, 3, 0, 3], np.int32), np.array([0, 2, 3, 5])
    )
    assert np.flatnonzero(two.used_rows(short, np.arange(3))).tolist() == [0, 3]
