"""Real chat templates: ids of the tokenizer's own `apply_chat_template`, masks of growing prefixes.

A conversation that is refused is refused for a reason that a plain look at the template's own
rendering confirms.
"""

from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fusestore.errors import InvalidInputError
from fusestore.tokenizers.chat_template import GENERATION_PROMPT
from fusestore.tokenizers.conversation import Conversation
from fusestore.tokenizers.supervision import Supervision, supervised_ranges
from fusestore.tokenizers.tokenizer import Tokenizer, chat_encoder
from tests.helpers.chat_families import (
    FAMILIES,
    family,
    family_tokenizer,
    qwen_byte_pairs,
    with_template,
)
from tests.helpers.real_tokenizers import MAKERS, real_tokenizer

encoder_of = cache(lambda name: chat_encoder(family(name), {}))

SPELLED = tuple(
    dict.fromkeys(
        token
        for each in FAMILIES.values()
        for token in (each.end, *each.markers[:3], *([each.bos] if each.bos else []))
    )
)
"""Markers of every family: text to all the others."""

CONTENT = st.one_of(
    st.text(st.sampled_from("ab .,\n\tÅé½\u0301字🦊<|>[]/\u200d{}'\"\x01\x03"), max_size=8),
    st.sampled_from(
        [*SPELLED, "</think>", "<think>a</think>b", "{{ 1 }}", "\n\n", "[INST", "<｜User"]
    ),
)
ROLE = st.sampled_from(["user", "assistant", "system"])
SHAPES = st.one_of(
    # Mostly what every family takes.
    st.integers(1, 3).map(lambda pairs: ["user", "assistant"] * pairs),
    st.integers(1, 2).map(lambda pairs: ["system", *["user", "assistant"] * pairs]),
    st.lists(ROLE, min_size=1, max_size=5),
)
CONVERSATIONS = SHAPES.flatmap(
    lambda roles: st.tuples(*(CONTENT for _ in roles)).map(
        lambda contents: tuple(zip(roles, contents, strict=True))
    )
)


def of(turns):
    return Conversation(tuple({"role": role, "content": content} for role, content in turns))


def own(hugging_face, messages, **options):
    """What the tokenizer itself renders, and its ids."""
    text = hugging_face.apply_chat_template(messages, tokenize=False, **options)
    ids = hugging_face.apply_chat_template(messages, return_dict=True, **options)["input_ids"]
    return text, list(ids)


def check(name, encoder, hugging_face, given):
    """Ids, ends and masks of a conversation against the tokenizer's own.

    Returns:
        Whether the model reads it; a refusal is right.
    """
    messages = given.with_contents(given.contents)
    try:
        ids, ends = encoder.encode([given], lambda _: "record 7").document(0)
    except InvalidInputError as error:
        refusal = str(error)
    else:
        refusal = None
    if refusal is not None:
        assert refusal.startswith("record 7: ")
        assert is_right(name, hugging_face, given, refusal), refusal
        return False
    text, expected = own(hugging_face, messages)
    assert ids.tolist() == expected
    assert encoder.rendered(given) == text
    assert (np.diff(ends) >= 0).all()
    assert ends.max() <= len(given.text.encode())
    counts = masks_of_prefixes(name, hugging_face, messages, text)
    if counts is not None:
        table = encoder.encode([given], str)
        ranges = supervised_ranges(given, "assistant")
        marked = Supervision.of([ranges]).mark(table, np.zeros(1, np.int64))
        assert marked.is_counted.tolist() == counts
        num_bytes = np.maximum(marked.counted_bytes, 0).sum()
        assert num_bytes == sum(stop - start for start, stop in ranges)
    return True


def masks_of_prefixes(name, hugging_face, messages, text):
    """The slow reference: of each answer, what follows the prompt for it, to its marker.

    Returns:
        Whether each token counts; None where the template changes what comes before an answer.
    """
    spans = hugging_face.backend_tokenizer.encode(text, add_special_tokens=False).offsets
    counts = np.zeros(len(spans), bool)
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if turn == 0:
            return None
        answers = [{}, FAMILIES[name].answer]
        prompts = [
            own(hugging_face, messages[:turn], add_generation_prompt=True, **answer)[0]
            for answer in answers
        ]
        content, end = message["content"], FAMILIES[name].end
        begins = [len(each) for each in prompts if text.startswith(f"{each}{content}{end}")]
        if not begins:
            # Qwen3 writes the last answer behind an empty block of thoughts.
            assert name == "qwen3"
            return None
        last = max(begins) + len(content) + len(end)
        counts |= [max(begins) < stop <= last for _, stop in spans]
    return counts.tolist()


def is_right(name, hugging_face, given, message):
    """Whether a refusal is right, by the tokenizer's own rendering."""
    messages = given.with_contents(given.contents)
    try:
        text, _ = own(hugging_face, messages)
    except Exception as error:
        return "refuses the conversation at turn" in message and str(error) in message
    tokens = [*hugging_face.all_special_tokens, *hugging_face.added_tokens_encoder]
    if "spells" in message:
        return any(token in content for token in tokens for content in given.contents)
    if "as one token with" in message:
        return True
    # Words in place of the contents: a template that keeps them has them once, in order.
    words = [f"word{number}word" for number in range(len(messages))]
    plain = own(hugging_face, given.with_contents(words))[0]
    places = [plain.find(word) for word in words]
    if any(plain.count(word) != 1 for word in words):
        return "leaves out" in message or "repeats" in message
    if places != sorted(places):
        return "moves" in message
    kept = [content in text for content in given.contents]
    thinks = any("</think>" in content for content in given.contents)
    return ("rewrites" in message or "leaves out" in message) and (thinks or not all(kept))


@pytest.mark.parametrize("name", FAMILIES)
@given(turns=CONVERSATIONS)
@settings(max_examples=25, deadline=None)
@example(turns=(("user", ""), ("assistant", "")))
@example(turns=(("system", "a."), ("user", "\u0301b"), ("assistant", "字")))
@example(turns=(("user", "a"), ("user", "b"), ("assistant", "c"), ("assistant", "d")))
@example(turns=(("user", "a"), ("system", "b"), ("assistant", "c")))
@example(turns=(("assistant", "a"), ("user", "b"), ("assistant", "<think>c</think>d")))
def test_ids_and_masks_are_the_tokenizers_own(name, turns):
    check(name, encoder_of(name), family_tokenizer(name), of(turns))


@pytest.mark.parametrize("name", FAMILIES)
def test_plain_conversations_are_read_by_every_family(name):
    first = [("user", "What is it?"), ("assistant", "A test.\n\nOf *two* lines, 字.")]
    turns = [*first, ("user", "So"), ("assistant", "it is")]
    assert check(name, encoder_of(name), family_tokenizer(name), of(turns))
    takes_system = check(
        name, encoder_of(name), family_tokenizer(name), of([("system", "Be."), *turns])
    )
    # Mistral's template writes the system's text before the last turn of the user, if it is last.
    assert takes_system == (name != "mistral_nemo")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tokenizer"),
    [("mistral_nemo", "tekken"), ("qwen2_5", "qwen"), ("gemma3", "gemma3")],
)
def test_ids_and_masks_by_the_families_own_tokenizers(name, tokenizer, request):
    """Of packages that bring them: Mistral's Tekken, Qwen's byte pairs, Gemma's sentencepiece."""
    if tokenizer == "qwen":
        plain = qwen_byte_pairs()
    elif tokenizer in MAKERS:
        plain = MAKERS[tokenizer]()._hugging_face
    else:
        plain = real_tokenizer(str(request.getfixturevalue("gemma3_tokenizer_path")))._hugging_face
    hugging_face = with_template(name, plain)
    encoder = chat_encoder(Tokenizer(hugging_face, name), {})

    @given(turns=CONVERSATIONS)
    @settings(max_examples=50, deadline=None)
    def run(turns):
        check(name, encoder, hugging_face, of(turns))

    run()


CALL = {
    "id": "a1b2c3d4e",
    "type": "function",
    "function": {"name": "look", "arguments": '{"at": 1}'},
}
TOOL = {
    "type": "function",
    "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}},
}
WITH_TOOLS = (
    {"role": "user", "content": "Look."},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "It is 1.", "tool_call_id": "a1b2c3d4e"},
    {"role": "assistant", "content": "One."},
)


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "mistral_nemo", "deepseek_v3"])
def test_tools_are_read_as_the_template_writes_them(name):
    given = Conversation(WITH_TOOLS, (TOOL,))
    hugging_face = family_tokenizer(name)
    ids, ends = encoder_of(name).encode([given], str).document(0)
    messages = given.with_contents(given.contents)
    text, expected = own(hugging_face, messages, tools=[TOOL])
    assert ids.tolist() == expected
    # This DeepSeek template writes the calls of turns whose content is null, which transformers
    # takes out of a message before.
    ignored = {"deepseek_v3": ["tool calls", "tools"]}.get(name, [])
    assert encoder_of(name).left_out(given) == ignored
    assert ('"name": "look"' in text) == (not ignored)
    turn = given.turns[3]
    assert {turn.start, turn.stop, turn.stop + 1} <= set(ends.tolist())
    marked = Supervision.of([supervised_ranges(given, "assistant")]).mark(
        encoder_of(name).encode([given], str), np.zeros(1, np.int64)
    )
    # Nothing of the call, which every template writes in its own way.
    assert np.maximum(marked.counted_bytes, 0).sum() == len("One.") + 1


@pytest.mark.parametrize(
    ("name", "drops"), [("qwen3", False), ("llama3", True), ("gemma3", True), ("smollm2", True)]
)
def test_reasoning_is_read_where_the_template_writes_it(name, drops):
    turns = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So.", "reasoning_content": "Because."},
    ]
    hugging_face, given = family_tokenizer(name), Conversation(tuple(turns))
    text, expected = own(hugging_face, turns)
    ids, _ = encoder_of(name).encode([given], str).document(0)
    assert ids.tolist() == expected
    assert ("Because." in text) != drops
    assert encoder_of(name).left_out(given) == (["reasoning"] if drops else [])


@pytest.mark.parametrize(
    "name",
    # DeepSeek's tokenizer takes a second to read a few conversations.
    [pytest.param(name, marks=[pytest.mark.slow] * (name == "deepseek_v3")) for name in FAMILIES],
)
@pytest.mark.parametrize("prompts", [False, True])
def test_generation_prompts_are_an_option(name, prompts):
    """Behind a conversation that ends without an answer, and behind no other."""
    hugging_face = family_tokenizer(name)
    encoder = chat_encoder(family(name), {GENERATION_PROMPT: prompts})
    turns = [("user", "Why?"), ("assistant", "So."), ("user", "How?")]
    for conversation, has_prompt in ((of(turns), prompts), (of(turns[:2]), False)):
        ids, ends = encoder.encode([conversation], str).document(0)
        messages = conversation.with_contents(conversation.contents)
        text, expected = own(hugging_face, messages, add_generation_prompt=has_prompt)
        assert ids.tolist() == expected
        assert encoder.rendered(conversation) == text
        if has_prompt:
            # The last row has read the header of the answer.
            assert ends[-1] == len(conversation.text.encode())


def test_a_template_that_writes_what_it_makes_of_thoughts_is_refused_by_turn():
    given = of([("user", "a"), ("assistant", "<think>b</think>c"), ("user", "d")])
    with pytest.raises(InvalidInputError, match=r"record 7: .*qwen3 .* the content of turn 1"):
        encoder_of("qwen3").encode([given], lambda _: "record 7")
    assert check("llama3", encoder_of("llama3"), family_tokenizer("llama3"), given)


REFUSED = {
    "gemma3": ([("user", "a"), ("user", "b")], r"at turn 1 \(user\): .*must alternate"),
    "mistral_nemo": ([("system", "a"), ("user", "b"), ("assistant", "c")], "leaves out .* turn 0"),
    "deepseek_v3": ([("user", "a"), ("system", "b"), ("assistant", "c")], "moves .* turn 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_family_cannot_read_is_refused_by_model_and_turn(name):
    turns, problem = REFUSED[name]
    with pytest.raises(
        InvalidInputError, match=f"record 7: the chat template of {name} .*{problem}"
    ):
        encoder_of(name).encode([of(turns)], lambda _: "record 7")
