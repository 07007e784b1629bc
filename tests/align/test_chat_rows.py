"""The row at an answer's first token: that of the source behind its own prompt for the answer."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.align.kinds import SPAN
from fusestore.align.tokens.pairing import align_tokens
from fusestore.tokenizers.conversation import Conversation
from fusestore.tokenizers.supervision import Supervision, supervised_ranges
from fusestore.tokenizers.tokenizer import chat_encoder
from tests.helpers.chat_families import FAMILIES, family, family_tokenizer

encoder_of = cache(lambda name: chat_encoder(family(name), {}))
vocabulary_of = cache(lambda name: family(name).vocabulary)

TEXT = st.text(st.sampled_from("ab .,\nÅ字🦊<"), max_size=8)
EXCHANGES = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("gemma3", "smollm2"),
        ("qwen3", "mistral_nemo"),
        pytest.param("llama3", "qwen3", marks=pytest.mark.slow),
        pytest.param("qwen2_5", "llama3_1", marks=pytest.mark.slow),
    ],
)
@given(exchanges=EXCHANGES)
@settings(max_examples=20, deadline=None)
def test_the_source_has_read_the_same_turns_and_its_own_header(source, target, exchanges):
    turns = [turn for q, a in exchanges for turn in (("user", q), ("assistant", a))]
    messages = tuple({"role": role, "content": content} for role, content in turns)
    conversation = Conversation(messages)
    table = encoder_of(target).encode([conversation], str)
    source_ids, source_ends = encoder_of(source).encode([conversation], str).document(0)
    position, kind = align_tokens(
        *(source_ids, source_ends),
        *table.document(0),
        *(vocabulary_of(source), vocabulary_of(target)),
    )
    ranges = supervised_ranges(conversation, "assistant")
    counted = Supervision.of([ranges]).mark(table, np.zeros(1, np.int64)).is_counted
    firsts = np.flatnonzero(counted & ~np.append(False, counted[:-1]))
    assert len(firsts) == len(exchanges)
    hugging_face = family_tokenizer(source)
    text = encoder_of(source).rendered(conversation)
    spans = hugging_face.backend_tokenizer.encode(text, add_special_tokens=False).offsets
    plain = conversation.with_contents(conversation.contents)
    for turn, first in zip(range(1, len(messages), 2), firsts, strict=True):
        assert kind[first - 1] == SPAN
        options = FAMILIES[source].answer if turn == len(messages) - 1 else {}
        prompt = hugging_face.apply_chat_template(
            plain[:turn], tokenize=False, add_generation_prompt=True, **options
        )
        assert text[: spans[position[first - 1]][1]] == prompt
