"""Conversations as every model's own tokens: ids of its template, ends in the shared text."""

import json
from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fusestore.errors import IncompatibleError, InvalidInputError
from fusestore.tokenizers.conversation import TRAIN_ON, Conversation
from fusestore.tokenizers.supervision import Supervision, supervised_ranges
from fusestore.tokenizers.tokenizer import Tokenizer, chat_encoder
from tests.helpers.chat_models import (
    CHATML,
    TEMPLATES,
    chat_tokenizer,
    conversation,
    encoder_and_tokenizer,
)
from tests.helpers.real_tokenizers import real_tokenizer

NAMES = [(name, pieces) for name in TEMPLATES for pieces in (False, True)]
encoder_of = cache(lambda name, pieces: encoder_and_tokenizer(name, pieces=pieces))

TEXT = st.text(st.sampled_from("ab .\n\tÅé½\u0301字🦊<|>[]\u200d{}'\"\x01\x03"), max_size=6)
EXCHANGES = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3)


def chat_encoder_of(hugging_face, name):
    return chat_encoder(Tokenizer(hugging_face, name), {})


def of(*turns):
    return Conversation(tuple({"role": role, "content": content} for role, content in turns))


def alternating(exchanges):
    return of(*(turn for q, a in exchanges for turn in (("user", q), ("assistant", a))))


def encoded(encoder, given):
    return encoder.encode([given], lambda _: "the conversation").document(0)


def own_ids(hugging_face, given):
    """What the tokenizer itself makes of the conversation, as every model reads it."""
    messages = given.with_contents(given.contents)
    return list(hugging_face.apply_chat_template(messages, return_dict=True)["input_ids"])


def counted(encoder, given, train_on):
    table = encoder.encode([given], str)
    ranges = Supervision.of([supervised_ranges(given, train_on)])
    return ranges.mark(table, np.zeros(1, np.int64))


@pytest.mark.parametrize(("name", "pieces"), NAMES)
@given(exchanges=EXCHANGES)
@settings(max_examples=30)
@example(exchanges=[("", ""), (" a", "b\n")])
@example(exchanges=[("{{ 1 }}", "{% if %}"), ("</think>", "\x04")])
def test_tokens_are_those_of_apply_chat_template(name, pieces, exchanges):
    encoder, hugging_face = encoder_of(name, pieces)
    given = alternating(exchanges)
    ids, ends = encoded(encoder, given)
    assert ids.tolist() == own_ids(hugging_face, given)
    assert (np.diff(ends) >= 0).all()
    assert ends.max() <= len(given.text.encode())
    # Every marker of an assistant's turn, and no other token, ends behind its ETX.
    stops = [turn.stop + 1 for turn in given.turns if turn.role == "assistant"]
    assert [
        end
        for token, end in zip(ids, ends, strict=True)
        if token == encoder.identity.end_of_turn_id and end in stops
    ] == stops


@pytest.mark.parametrize(("name", "pieces"), [("chatml", False), ("headers", True)])
@given(exchanges=EXCHANGES)
@settings(max_examples=20)
def test_masks_equal_those_of_growing_prefixes(name, pieces, exchanges):
    """The slow reference: what is new in the rendering with one turn more, behind its header."""
    encoder, hugging_face = encoder_of(name, pieces)
    given = alternating(exchanges)
    backend = hugging_face.backend_tokenizer
    text = encoder.rendered(given)
    expected = np.zeros(len(own_ids(hugging_face, given)), bool)
    spans = backend.encode(text, add_special_tokens=False).offsets
    position = 0
    for stop, (turn, content) in enumerate(zip(given.turns, given.contents, strict=True), 1):
        whole = encoder.rendered(Conversation(given.messages[:stop]))
        assert text.startswith(whole)
        header = whole.index(">" + turn.role, position)
        begin = whole.index("\n", header) + (1 if name == "chatml" else 2)
        end = begin + len(content)
        assert whole[begin:end] == content
        marker = whole.index(">", end) + 1
        if turn.role == "assistant":
            expected |= [begin < last <= marker for _, last in spans]
        position = marker
    assert counted(encoder, given, "assistant").is_counted.tolist() == expected.tolist()


@given(exchanges=EXCHANGES, train_on=st.sampled_from(TRAIN_ON))
@settings(max_examples=20)
def test_all_models_count_the_same_bytes(exchanges, train_on):
    given = alternating([("First", "one"), *exchanges])
    totals = set()
    for name, pieces in NAMES:
        table = counted(encoder_of(name, pieces)[0], given, train_on)
        totals.add(int(np.maximum(table.counted_bytes, 0).sum()))
    ranges = supervised_ranges(given, train_on)
    assert totals == {sum(stop - start for start, stop in ranges)}


def test_what_is_trained_on():
    given = of(
        ("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v"),
        ("assistant", "b"), ("tool", "t"), ("assistant", "c"),
    )  # fmt: skip
    chosen = {
        rule: "".join(
            content
            for content, is_chosen in zip(given.contents, given.trained_on(rule), strict=True)
            if is_chosen
        )
        for rule in TRAIN_ON
    }
    assert chosen == {"assistant": "abc", "all": "suavbtc", "last-turn": "c", "completion": "bc"}


def test_ends_on_an_example():
    encoder, hugging_face = encoder_of("chatml", False)
    given = of(("user", "So be it."), ("assistant", ""), ("assistant", "So"))
    assert given.text == "\x01\x02So be it.\x03\x01\x02\x03\x01\x02So\x03\x04"
    ids, ends = encoded(encoder, given)
    shown = list(zip(hugging_face.convert_ids_to_tokens(ids.tolist()), ends.tolist(), strict=True))
    marks = [(piece, end) for piece, end in shown if piece == "<|im_end|>"]
    # The default system prompt's marker ends with the user's header.
    assert [end for _, end in marks] == [2, 12, 15, 20]
    assert shown[-1] == ("Ċ", 21)
    headers = [end for piece, end in shown[:-1] if piece == "Ċ"]
    assert headers == [2, 2, 2, 14, 14, 17, 17]


def test_a_space_that_is_merged_with_an_answer():
    """The header ends a byte earlier, and the token covers as many bytes as it spells."""
    encoder, hugging_face = encoder_of("instructions", True)
    given = of(("user", "What"), ("assistant", "of the"))
    ids, ends = encoded(encoder, given)
    tokens = hugging_face.convert_ids_to_tokens(ids.tolist())
    answer = tokens.index("▁of")
    start = given.turns[1].start
    assert ends[answer - 1] == start - 1
    assert ends[answer] == start + len("of")
    assert (ends[answer] - ends[answer - 1]) == len(" of")


def test_a_system_prompt_that_is_part_of_another_turn():
    encoder, hugging_face = encoder_of("prefixed", False)
    given = of(("system", "Be kind"), ("user", "What"), ("assistant", "So"))
    ids, ends = encoded(encoder, given)
    assert ids.tolist() == own_ids(hugging_face, given)
    # No marker of its own: the last token of the content ends behind the end of the turn.
    assert given.turns[0].stop + 1 in ends
    assert given.turns[0].stop not in ends
    everything = counted(encoder, given, "all").counted_bytes
    assert np.maximum(everything, 0).sum() == sum(b - a for a, b in supervised_ranges(given, "all"))


@pytest.mark.parametrize("marker", ["<|im_end|>", "<s>", "</s>"])
def test_a_marker_in_a_content_is_no_marker(marker):
    encoder, _ = encoder_of("chatml", False)
    with pytest.raises(
        InvalidInputError, match=rf"record 7: turn 1 spells '{marker}'".replace("|", r"\|")
    ):
        encoder.encode([of(("user", "a"), ("assistant", f"b{marker}c"))], lambda _: "record 7")


CHANGES = {
    "strips or rewrites": "{{ m['content'].strip('a') }}",
    "leaves out": "{% if loop.index == 1 %}{{ m['content'] }}{% endif %}",
    "repeats": "{{ m['content'] + m['content'] }}",
    "rewrites": "{{ m['content'].replace('b', 'c') }}",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_template_that_changes_a_content_is_refused(change):
    hugging_face = chat_tokenizer("chatml")
    hugging_face.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' }}"
        f"{CHANGES[change]}{{{{ '<|im_end|>' }}}}{{% endfor %}}"
    )
    with pytest.raises((InvalidInputError, IncompatibleError), match=f"odd {change} the content"):
        chat_encoder_of(hugging_face, "odd").encode([of(("user", "ab"), ("assistant", "ab"))], str)


def test_turns_in_another_order_are_refused():
    hugging_face = chat_tokenizer("chatml")
    hugging_face.chat_template = CHATML.replace("for m in messages", "for m in messages | reverse")
    with pytest.raises(IncompatibleError, match="odd moves the content of turn 0"):
        chat_encoder_of(hugging_face, "odd")


def test_white_space_that_a_template_strips():
    spaced = ({"role": "user", "content": " a "}, {"role": "assistant", "content": "b\n"})
    stripping, other = encoder_of("headers", False)[0], encoder_of("chatml", False)[0]
    for encoder in (stripping, other):
        ids, _ = encoded(encoder, Conversation(spaced))
        plain, _ = encoded(encoder, of(("user", "a"), ("assistant", "b")))
        assert ids.tolist() == plain.tolist()
    kept = Conversation(spaced, keep_white_space=True)
    assert kept.text == "\x01\x02 a \x03\x01\x02b\n\x03\x04"
    encoded(other, kept)
    with pytest.raises(InvalidInputError, match="headers strips or rewrites the content of turn 0"):
        encoded(stripping, kept)


def test_models_that_cannot_read_conversations():
    hugging_face = chat_tokenizer("chatml")
    hugging_face.chat_template = None
    with pytest.raises(IncompatibleError, match=r"plain.*no chat template"):
        chat_encoder_of(hugging_face, "plain")
    hugging_face.chat_template = "{{ strftime_now('%d') }}" + CHATML
    with pytest.raises(IncompatibleError, match=r"date of the day.*date_string"):
        chat_encoder_of(hugging_face, "dated")
    hugging_face.chat_template = CHATML.replace("<|im_end|>", "###")
    with pytest.raises(IncompatibleError, match=r"'###\\n' after a turn"):
        chat_encoder_of(hugging_face, "endless")
    with pytest.raises(InvalidInputError, match="Only user and assistant roles are supported"):
        encoded(encoder_of("instructions", False)[0], of(("system", "a"), ("user", "b")))


BAD: dict[str, Any] = {
    "a conversation without turns": [],
    "turn 0 has the role 'narrator'": [{"role": "narrator", "content": "a"}],
    "turn 1 has neither content nor tool calls": [
        {"role": "user", "content": "a"},
        {"role": "user"},
    ],
    "turn 0 has the part {'type': 'image'": [
        {"role": "user", "content": [{"type": "image", "url": "a"}]}
    ],
    "turn 0 is 'a', not an object": ["a"],
    "turn 0 has 3 as content": [{"role": "user", "content": 3}],
}


@pytest.mark.parametrize("problem", BAD)
def test_what_is_no_conversation(problem):
    with pytest.raises(InvalidInputError) as raised:
        Conversation(tuple(BAD[problem]))
    assert problem in str(raised.value)


@given(
    messages=st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant", "tool"]), "content": TEXT},
            optional={"name": TEXT, "reasoning_content": TEXT},
        ),
        min_size=1,
        max_size=4,
    ),
    keep=st.booleans(),
)
def test_nothing_is_lost(messages, keep):
    tools = ({"type": "function", "function": {"name": "f", "parameters": {}}},)
    messages[0]["tool_calls"] = [{"function": {"name": "f", "arguments": {"a": [1, None]}}}]
    given = Conversation(tuple(messages), tools, keep)
    assert Conversation.from_json(given.to_json()) == given
    assert json.loads(given.to_json())["messages"] == messages
    data = given.text.encode()
    for turn, content in zip(given.turns, given.contents, strict=True):
        assert data[turn.start : turn.stop].decode() == content


def test_parts_of_text_and_tool_calls():
    encoder, _ = encoder_of("chatml", False)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = {"function": {"name": "look", "arguments": {}}}
    given = Conversation(
        (
            {"role": "user", "content": parts},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "content": "c"},
            {"role": "assistant", "content": "d"},
        )
    )
    assert given.contents == ("ab", "", "c", "d")
    text = encoder.rendered(given)
    assert "<|im_start|>assistant\n\n<call>look<|im_end|>" in text
    table = counted(encoder, given, "assistant")
    # Of the call, which every template writes in its own way, nothing is trained on.
    assert np.maximum(table.counted_bytes, 0).sum() == len("d") + 1


def test_the_real_smollm2(smollm2_tokenizer_path):
    check_real(real_tokenizer(str(smollm2_tokenizer_path)))


GEMMA = """\
{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' -}}
{{ 'model' if m['role'] == 'assistant' else m['role'] }}
{{ m['content'] | trim }}<end_of_turn>
{% endfor %}"""


@pytest.mark.slow
def test_the_real_gemma(gemma3_tokenizer_path):
    """The pretrained model has no template, but the tokens of one."""
    tokenizer = real_tokenizer(str(gemma3_tokenizer_path))
    with pytest.raises(IncompatibleError, match="no chat template"):
        chat_encoder(tokenizer, {})
    check_real(tokenizer, GEMMA)


def check_real(tokenizer, fallback=None):
    encoder = chat_encoder(tokenizer, {}, fallback)
    hugging_face = deepcopy(tokenizer._hugging_face)
    if fallback is not None:
        hugging_face.chat_template = fallback
    for number in range(6):
        given = Conversation(tuple(conversation(number)))
        ids, ends = encoded(encoder, given)
        assert ids.tolist() == own_ids(hugging_face, given)
        assert {turn.start for turn in given.turns} <= set(ends.tolist())
        assert {turn.stop for turn in given.turns} <= set(ends.tolist())
        assert {turn.stop + 1 for turn in given.turns} <= set(ends.tolist())
