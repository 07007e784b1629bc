"""How far the demo's result differs between seeds, and what labels and `inside` rows are worth.

    make demo
    python experiments/demo_seeds.py [--seeds 3] [--parts]

Repeats the demo's two runs with further first weights; seed 0 is the demo itself. With `--parts`
it also trains on fused rows without their label, and without those of kind `inside`. What is there
is not trained again. Figures stand in docs/demo.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from learning_curves import spread, table

from fusestore.fuse.run import fuse
from fusestore.models.model import Model
from fusestore.report.learning_curves import LearningCurve, best
from fusestore.storage.location import Location
from fusestore.store.layout import Store
from fusestore.train.run import train_model
from fusestore.workflows.demo.demo_student import make_student
from fusestore.workflows.fusion_config import load_config

DEMO = Path(".demo/demo.toml")
"""Written by `make demo`."""

PARTS: dict[str, dict[str, Any]] = {
    "no-label": {"keep_label": False},
    "span-only": {"kinds": ("span",)},
}
"""Changes of the demo's recipe."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parts", action="store_true")
    arguments = parser.parse_args()
    config = load_config(Location.parse(DEMO))
    store = Store.open(config.store)
    evaluate = (config.corpus.name, str(config.evaluate_split))
    datasets = {name: run.fused for name, run in config.train.items()}
    start = config.models["student"].model
    settings = {name: run.settings for name, run in config.train.items()}
    for name, changes in PARTS.items() if arguments.parts else ():
        datasets[name], settings[name] = name, settings["fused"]
        recipe = config.fuse[config.train["fused"].fused].model_copy(update=changes)
        fuse(store, name, recipe, target=Model.open(start))
    curves: dict[str, dict[int, list[tuple[int, float]]]] = {name: {} for name in datasets}
    for seed in range(arguments.seeds):
        folder = start
        if seed:
            folder = f"{folder}-{seed}"
            make_student(folder, seed)
        for name, dataset in datasets.items():
            trained = train_model(
                store,
                f"{name}-{seed}" if seed else name,
                folder,
                dataset,
                settings[name].model_copy(update={"seed": seed}),
                evaluate=evaluate,
            ).artifact
            curve = LearningCurve.of(name, trained.manifest)
            if curve is not None:
                curves[name][seed] = curve.points
            print(f"{name}, seed {seed}: done", flush=True)
    print(table(curves, ["baseline"]))
    pairs = [
        best(curves["baseline"][seed])[1] - best(curves["fused"][seed])[1]
        for seed in curves["fused"]
    ]
    print(f"fused is better by {spread(pairs, '.4f')} bits per byte")


if __name__ == "__main__":
    main()
