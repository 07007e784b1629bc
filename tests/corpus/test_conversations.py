"""Conversations as input: their forms, what is refused, how long ones are cut, what is stored."""

import json
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.corpus.build import write_corpus
from fusestore.corpus.conversation_forms import FORMS
from fusestore.corpus.corpus import open_corpus
from fusestore.corpus.manifest import ChatSettings
from fusestore.corpus.run import build_corpus
from fusestore.corpus.segment_conversation import segment_conversation
from fusestore.corpus.settings import CorpusSettings
from fusestore.corpus.shown_document import shown_document
from fusestore.corpus.tokenize import find_corpus_tokens, store_corpus_tokens
from fusestore.errors import FusestoreError, IncompatibleError, InvalidInputError
from fusestore.store.layout import Store
from fusestore.tokenizers.conversation import TRAIN_ON, Conversation
from fusestore.tokenizers.tokenizer import Tokenizer
from tests.helpers.chat_models import (
    CHATML,
    chat_tokenizer,
    conversation,
    encoder_and_tokenizer,
    write_conversations,
)
from tests.helpers.command import Command

PLAIN = [
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "So."},
]
ENCODER, _ = encoder_and_tokenizer("chatml")
SYSTEM = {"role": "system", "content": "Be kind."}

RECORDS: dict[str, Any] = {
    "messages": [
        ({"messages": PLAIN}, PLAIN),
        ({"messages": json.dumps([SYSTEM, *PLAIN])}, [SYSTEM, *PLAIN]),
    ],
    "sharegpt": [
        (
            {
                "system": "Be kind.",
                "conversations": [
                    {"from": "human", "value": "Why?"},
                    {"from": "gpt", "value": "So."},
                ],
            },
            [SYSTEM, *PLAIN],
        ),
        ({"conversations": PLAIN}, PLAIN),
    ],
    "preference": [
        ({"prompt": "Why?", "chosen": "So.", "rejected": "No."}, PLAIN),
        ({"prompt": "Why?", "chosen": PLAIN, "rejected": PLAIN[:1]}, PLAIN),
        ({"prompt": PLAIN[:1], "chosen": PLAIN[1:], "rejected": []}, PLAIN),
    ],
    "completion": [
        ({"prompt": "Why?", "completion": "So."}, PLAIN),
        ({"prompt": PLAIN[:1], "completion": PLAIN[1:]}, PLAIN),
    ],
    "instruction": [
        ({"instruction": "Why?", "output": "So."}, PLAIN),
        (
            {"instruction": "Why?", "input": "It.", "output": "So.", "system": "Be kind."},
            [SYSTEM, {"role": "user", "content": "Why?\n\nIt."}, PLAIN[1]],
        ),
    ],
}


@pytest.fixture(scope="module")
def chatml():
    return Tokenizer(chat_tokenizer("chatml"), "chatml")


def conversations_of(corpus):
    [batch] = corpus.conversation_batches()
    return [list(each.messages) for each in batch]


def write(path, records):
    if path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    elif path.suffix == ".csv":
        pl.DataFrame(records).write_csv(path)
    else:
        pl.DataFrame(records).write_parquet(path)
    return path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_every_form_is_recognized(form, suffix, tmp_path):
    for number, (record, expected) in enumerate(RECORDS[form]):
        file = write(tmp_path / f"a{number}{suffix}", [record])
        corpus = write_corpus(tmp_path / "store", f"c{number}", file)
        assert conversations_of(corpus) == [expected]
        assert corpus.texts() == [Conversation(tuple(expected)).text]


def test_instructions_in_a_csv(tmp_path):
    file = write(tmp_path / "a.csv", [{"instruction": "Why?", "output": "So."}])
    assert conversations_of(write_corpus(tmp_path / "store", "c", file)) == [PLAIN]


def test_a_column_of_text_comes_first(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"text": "A text.", "messages": PLAIN}])
    assert write_corpus(tmp_path / "store", "c", file).texts() == ["A text."]
    chat = write_corpus(tmp_path / "store", "d", file, form="messages")
    assert conversations_of(chat) == [PLAIN]
    with pytest.raises(InvalidInputError, match="no column 'instruction'"):
        write_corpus(tmp_path / "store", "e", file, form="instruction")


BAD = {
    "has no value in 'messages'": {"messages": None},
    "form messages: a conversation without turns": {"messages": []},
    "turn 1 has the role 'bot'": {"messages": [*PLAIN[:1], {"role": "bot", "content": "a"}]},
    "turn 0 has the part {'type': 'image_url'": {
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "a"}]}]
    },
    "turn 0 is 3, not an object": {"messages": [3]},
    "'messages' is 'Why?', not a list": {"messages": "Why?"},
    "lone surrogate U+D800": {"messages": [{"role": "user", "content": "a\ud800"}]},
}


@pytest.mark.parametrize("problem", BAD)
def test_a_bad_record_is_named(problem, tmp_path):
    file = write(tmp_path / "a.jsonl", [{"messages": PLAIN}, BAD[problem]])
    with pytest.raises(InvalidInputError) as raised:
        write_corpus(tmp_path / "store", "c", file)
    assert str(raised.value).startswith("Line 2 of a.jsonl")
    assert problem in str(raised.value)
    assert not (tmp_path / "store").exists()


GPT = {"from": "gpt", "value": "So."}
BAD_FORMS: dict[str, dict[str, Any]] = {
    "form sharegpt: a conversation without turns": {"conversations": []},
    "turn 0 has the role 'bot'; roles are": {"conversations": [{"from": "bot", "value": "a"}]},
    "turn 0 has 3 as content, not text": {"conversations": [{"from": "human", "value": 3}, GPT]},
    "turn 1 has neither content nor tool calls": {"conversations": [GPT, {"from": "human"}]},
    "turn 0 is 'a', not an object": {"conversations": ["a"]},
    "form preference: a conversation without turns": {"prompt": [], "chosen": []},
    "'chosen' is 3, not a list": {"prompt": "a", "chosen": 3},
    "form completion: a conversation without turns": {"prompt": [], "completion": []},
    "'completion' is {'a': 1}, not a list": {"prompt": "a", "completion": {"a": 1}},
    "'input' is 3, not text": {"instruction": "a", "input": 3, "output": "b"},
    "has no value in 'output'": {"instruction": "a", "output": None},
    "'tools' is 3, not a list": {"messages": PLAIN, "tools": 3},
}


@pytest.mark.parametrize("problem", BAD_FORMS)
def test_a_bad_record_of_any_form_is_named(problem, tmp_path):
    bad = BAD_FORMS[problem]
    [form] = [form for form in FORMS.values() if set(form.needed) <= bad.keys()]
    good = {**dict.fromkeys(bad), **RECORDS[form.name][0][0]}
    file = write(tmp_path / "a.jsonl", [good, good, bad])
    with pytest.raises(InvalidInputError) as raised:
        write_corpus(tmp_path / "store", "c", file)
    assert str(raised.value).startswith("Line 3 of a.jsonl")
    assert problem in str(raised.value)
    assert not (tmp_path / "store").exists()


def test_arguments_that_are_no_variables_of_templates():
    for name in ("add_generation_prompt", "tokenize", "tools"):
        with pytest.raises(ValueError, match=f"'{name}' is an argument of apply_chat_template"):
            CorpusSettings(template_variables={name: True})


def test_prompts_alone_end_with_the_header_of_an_answer(tmp_path, chatml):
    file = write(tmp_path / "a.jsonl", [{"messages": PLAIN[:1]}, {"messages": PLAIN}])
    store = Store.open(tmp_path / "s")
    tables = []
    for name, prompts in (("without", False), ("with", True)):
        settings = CorpusSettings(max_length=None, add_generation_prompt=prompts)
        corpus = build_corpus(store, name, [str(file)], settings, tokenizers=[chatml]).artifact
        tables.append(store_corpus_tokens(store, corpus, chatml, add_bos=False).table())
    plain, prompted = tables
    spelled = b"".join(chatml.vocabulary.token_bytes[each] for each in prompted.document(0)[0])
    assert spelled.endswith(b"<|im_start|>assistant\n")
    assert len(prompted.document(0)[0]) > len(plain.document(0)[0])
    assert prompted.document(1)[0].tolist() == plain.document(1)[0].tolist()
    # The prompt's rows are there; nothing of it is trained on.
    assert [turn["trained_on"] for turn in corpus.table()["turns"][0]] == [False]


def test_a_bad_row_of_a_table_is_named(tmp_path):
    rows = [{"messages": PLAIN}, {"messages": [{"role": "bot", "content": "a"}]}]
    file = write(tmp_path / "a.parquet", rows)
    with pytest.raises(InvalidInputError, match=r"Row 1 of a\.parquet.*role 'bot'"):
        write_corpus(tmp_path / "store", "c", file)


def test_texts_and_conversations_make_no_corpus(tmp_path):
    write(tmp_path / "a.jsonl", [{"messages": PLAIN}])
    (tmp_path / "b.txt").write_text("A text.")
    with pytest.raises(InvalidInputError, match=r"b\.txt is a text, but a\.jsonl#0 is not"):
        write_corpus(tmp_path / "store", "c", [tmp_path / "a.jsonl", tmp_path / "b.txt"])


def test_a_model_that_cannot_read_a_record(tmp_path, chatml):
    rows = [{"messages": PLAIN}, {"messages": [*PLAIN, {"role": "user", "content": "<|im_end|>"}]}]
    file = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(InvalidInputError, match=r"a\.jsonl#1: turn 2 spells '<\|im_end\|>'"):
        write_corpus(tmp_path / "store", "c", file, tokenizers=[chatml])
    corpus = write_corpus(tmp_path / "store", "c", file)
    with pytest.raises(InvalidInputError, match=r"Document 1 \(a\.jsonl#1, segment 0\): turn 2"):
        store_corpus_tokens(tmp_path / "store", corpus, chatml, add_bos=False)
    plain = chat_tokenizer("chatml")
    plain.chat_template = None
    with pytest.raises(IncompatibleError, match="no chat template"):
        store_corpus_tokens(tmp_path / "store", corpus, Tokenizer(plain, "plain"), add_bos=False)


def test_a_template_for_models_without_one(tmp_path, chatml):
    plain = chat_tokenizer("chatml")
    plain.chat_template = None
    file = write_conversations(tmp_path / "a.jsonl", 1)
    template = tmp_path / "chat.jinja"
    template.write_text(CHATML.replace("Be kind.", "Be brief."))
    settings = CorpusSettings(max_length=None, fallback_template=str(template))
    store = Store.open(tmp_path / "s")
    both = [Tokenizer(plain, "plain"), chatml]
    corpus = build_corpus(store, "c", [str(file)], settings, tokenizers=both).artifact
    assert corpus.manifest.fingerprint.chat.fallback_template == template.read_text()
    own, fallback = (
        store_corpus_tokens(store, corpus, each, add_bos=False).table() for each in reversed(both)
    )
    spelled = b"".join(chatml.vocabulary.token_bytes[token] for token in fallback.token_ids)
    assert b"Be brief." in spelled
    assert own.num_tokens != fallback.num_tokens
    with pytest.raises(InvalidInputError, match=r"missing\.jinja cannot be read"):
        build_corpus(
            store,
            "d",
            [str(file)],
            CorpusSettings(fallback_template="missing.jinja"),
            tokenizers=both,
        )


def test_one_example_is_shown_first(tmp_path, chatml):
    lines = []
    file = write_conversations(tmp_path / "a.jsonl", 2)
    write_corpus(tmp_path / "store", "c", file, tokenizers=[chatml], report=lines.append)
    [line] = lines
    assert line.startswith("a.jsonl#0 is a conversation of user, assistant, user, assistant, which")
    assert "<|im_start|>assistant\nThe state of the Union" in line


def test_long_conversations_are_cut_before_turns_of_the_user(tmp_path, chatml):
    exchange = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So be it."}]
    long = [exchange[0], {"role": "assistant", "content": "So. " * 60}]
    given = [SYSTEM, *exchange, *exchange, *long, *exchange, *exchange, *exchange]
    file = write(tmp_path / "a.jsonl", [{"messages": given}])
    lines = []
    corpus = write_corpus(
        *(tmp_path / "store", "c", file),
        tokenizers=[chatml],
        max_length=80,
        chat=ChatSettings(train_on="all", template_variables={}),
        report=lines.append,
    )
    segments = conversations_of(corpus)
    assert segments == [
        [SYSTEM, *exchange, *exchange],
        [SYSTEM, *exchange * 2],
        [SYSTEM, *exchange],
    ]
    assert corpus.table()["segment"].to_list() == [0, 1, 2]
    assert corpus.manifest.dropped_exchanges == 1
    assert lines[-2:] == [
        "1 conversations of more than 80 tokens were cut before turns of the user into 3 "
        "documents; each begins with the turns of the system, which are trained on once",
        "1 exchanges of more than 80 tokens were left out, with 245 bytes to train on; raise "
        "max_length to keep them: turns 5 to 6 of a.jsonl#0",
    ]
    tokens = store_corpus_tokens(tmp_path / "store", corpus, chatml, add_bos=False)
    assert max(tokens.document_offsets[1:] - tokens.document_offsets[:-1]) <= 80
    # The system's turn is trained on once.
    trained = [turns[0]["trained_on"] for turns in corpus.table()["turns"].to_list()]
    assert trained == [True, False, False]


@given(
    sizes=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=6),
    system=st.booleans(),
    limit=st.integers(30, 120),
    train_on=st.sampled_from(TRAIN_ON),
)
@settings(max_examples=40)
def test_every_supervised_byte_is_in_one_segment_or_left_out(sizes, system, limit, train_on):
    words = [({"role": "user", "content": "q" * q}, {"role": "assistant", "content": "a" * a})
             for q, a in sizes]  # fmt: skip
    given = Conversation(
        (*([SYSTEM] if system else []), *(turn for pair in words for turn in pair))
    )
    encoder = ENCODER
    segmented = segment_conversation(given, [encoder], limit, str)
    trained_on = given.trained_on(train_on)
    kept = [turn for first, stop in segmented.left_out for turn in range(first, stop)]
    for segment in segmented.segments:
        part = segment.conversation
        assert encoder.encode([part], str).num_tokens <= limit
        flags = segment.of_turns(trained_on)
        assert len(flags) == len(part.messages)
        # What is repeated is the system's, and is not trained on again.
        assert [turn.role for turn in part.turns[: part.repeated]] == ["system"] * part.repeated
        assert not any(flags[: part.repeated])
        assert list(part.messages[part.repeated :]) == list(
            given.messages[segment.start : segment.stop]
        )
        # Nothing but a turn of the user begins one.
        assert segment.start == 0 or part.turns[part.repeated].role == "user"
        kept += range(segment.start, segment.stop)
        assert flags[part.repeated :] == trained_on[segment.start : segment.stop]
    assert sorted(kept) == list(range(len(given.messages)))


def test_tool_calls_are_read_and_said_not_to_be_trained_on(tmp_path, chatml):
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}
    given = [PLAIN[0], call, {"role": "tool", "content": "It."}, PLAIN[1]]
    file = write(tmp_path / "a.jsonl", [{"messages": given, "tools": [{"type": "function"}]}])
    lines = []
    corpus = write_corpus(tmp_path / "s", "c", file, tokenizers=[chatml], report=lines.append)
    assert conversations_of(corpus) == [given]
    assert lines[-2:] == [
        "Of 1 conversations there are tool calls in 1, tools in 1: each model reads them as its "
        "chat template writes them, and none is trained on them",
        "chatml does not read the tools of 1: its chat template leaves them out",
    ]
    [kept] = next(corpus.conversation_batches())
    assert kept.tools == ({"type": "function"},)


def test_the_same_tokenizer_with_two_templates(tmp_path, chatml):
    corpus = write_corpus(tmp_path / "s", "c", write_conversations(tmp_path / "a.jsonl", 1))
    other = chat_tokenizer("chatml")
    other.chat_template = other.chat_template.replace("Be kind.", "")
    renamed = Tokenizer(other, "other")
    assert renamed.digest == chatml.digest
    first, second = (
        store_corpus_tokens(tmp_path / "s", corpus, each, add_bos=True)
        for each in (chatml, renamed)
    )
    assert first.location != second.location
    assert first.manifest.num_tokens > second.manifest.num_tokens
    found = find_corpus_tokens(corpus, chatml.digest)
    assert {each.location for each in found} == {first.location, second.location}
    again = store_corpus_tokens(tmp_path / "s", corpus, chatml, add_bos=False)
    assert again.location == first.location


def test_what_is_trained_on_is_part_of_a_corpus(tmp_path):
    file = write_conversations(tmp_path / "a.jsonl", 1)
    store = Store.open(tmp_path / "s")
    first = write_corpus(store, "c", file)
    assert write_corpus(store, "c", file).digest == first.digest
    with pytest.raises(FusestoreError, match="train_on"):
        write_corpus(
            *(store, "c", file), chat=ChatSettings(train_on="last-turn", template_variables={})
        )
    assert conversations_of(first) == [conversation(0)]


def test_a_shown_conversation_is_the_one_that_was_given(tmp_path, capsys, monkeypatch):
    command = Command(capsys, monkeypatch)
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}
    given = [{"role": "user", "content": " Why? "}, call, {"role": "tool", "content": ""}, PLAIN[1]]
    file = write(tmp_path / "a.jsonl", [{"messages": given}])
    common = ["--store", tmp_path / "s"]
    settings = ["--max-length", "none", "--train-on", "last-turn"]
    settings += ["--template-variables", "enable_thinking=false"]
    built = command.succeeds("corpus", file, *common, "--name", "c", *settings)
    assert "a.jsonl#0 is a conversation of user, assistant, tool, assistant" in built.err
    chat = open_corpus(tmp_path / "s", "c").manifest.fingerprint.chat
    assert chat.template_variables == {"enable_thinking": False}
    shown = ["show", "corpus/c", *common, "--document"]
    content = json.loads(command.succeeds(*shown, "0", "--json").out)
    assert content["conversation"]["messages"] == given
    assert [turn["trained_on"] for turn in content["turns"]] == [False, False, False, True]
    assert "Why?" in command.succeeds(*shown, "0").out
    outcome = command(*shown, "1")
    assert outcome.code == 1
    assert "has 1 documents" in outcome.err


WORDS = st.text(st.sampled_from("ab .\n<|>Å½🦊"), max_size=5)
CALLS = [{"id": "a1", "type": "function", "function": {"name": "f", "arguments": {"x": [1, "é"]}}}]
TURNS = st.one_of(
    st.fixed_dictionaries({"role": st.just("user"), "content": WORDS}),
    st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": WORDS},
        optional={"reasoning_content": WORDS, "tool_calls": st.just(CALLS)},
    ),
    st.fixed_dictionaries({"role": st.just("assistant"), "tool_calls": st.just(CALLS)}),
    st.fixed_dictionaries(
        {"role": st.just("tool"), "content": WORDS}, optional={"tool_call_id": st.just("a1")}
    ),
    st.fixed_dictionaries(
        {
            "role": st.just("user"),
            "content": st.lists(
                st.fixed_dictionaries({"type": st.just("text"), "text": WORDS}), min_size=1
            ),
        }
    ),
)
"""Turns with every field that is kept."""


def of_sharegpt(turn):
    names = {"user": "human", "assistant": "gpt", "tool": "observation"}
    rest = {key: value for key, value in turn.items() if key not in ("role", "content")}
    value = {"value": turn["content"]} if "content" in turn else {}
    return {"from": names[turn["role"]], **value, **rest}


TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
]

WRITTEN: dict[str, Any] = {
    "messages": lambda turns, cut: {"messages": turns, "tools": TOOLS},
    "sharegpt": lambda turns, cut: {"conversations": [of_sharegpt(turn) for turn in turns]},
    "preference": lambda turns, cut: {"prompt": turns[:cut], "chosen": turns[cut:]},
    "completion": lambda turns, cut: {"prompt": turns[:cut], "completion": turns[cut:]},
}


@pytest.mark.parametrize("form", WRITTEN)
@pytest.mark.parametrize("keep", [False, True])
@given(
    conversations=st.lists(
        st.tuples(st.lists(TURNS, min_size=2, max_size=4), st.integers(1, 3)),
        min_size=1,
        max_size=3,
    )
)
@settings(max_examples=10)
def test_what_is_shown_is_what_was_given(form, keep, conversations, tmp_path_factory):
    folder = tmp_path_factory.mktemp(form)
    records = [WRITTEN[form](turns, cut) for turns, cut in conversations]
    corpus = write_corpus(*(folder, "c", write(folder / "a.jsonl", records)), keep_white_space=keep)
    for number, (turns, cut) in enumerate(conversations):
        shown = json.loads(json.dumps(shown_document(corpus, number).content))
        expected = turns
        if form == "preference" and turns[cut:][:cut] == turns[:cut]:
            # A chosen side that repeats the prompt.
            expected = turns[cut:]
        assert shown["conversation"]["messages"] == expected
        assert shown["conversation"].get("tools", []) == (TOOLS if form == "messages" else [])
        again = Conversation.from_json(json.dumps(shown["conversation"]))
        assert again.text == shown["text"]
        assert again.keep_white_space == keep
        assert [turn._asdict() for turn in again.turns] == [
            {key: turn[key] for key in ("role", "start", "stop")} for turn in shown["turns"]
        ]
