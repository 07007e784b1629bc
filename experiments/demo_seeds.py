"""How far the demo's result differs between seeds: its two runs with further first weights.

    make demo
    python experiments/demo_seeds.py [--seeds 3]

Seed 0 is the demo itself. Figures stand in docs/demo.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from learning_curves import spread, table

from fusestore.report.learning_curves import LearningCurve, best
from fusestore.storage.location import Location
from fusestore.store.layout import Store
from fusestore.train.run import train_model
from fusestore.workflows.fusion_config import load_config

EXAMPLES = Path(__file__).parent.parent / "examples"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    config = load_config(Location.parse(EXAMPLES / "demo.toml"))
    store = Store.open(config.store)
    evaluate = (config.corpus.name, str(config.evaluate_split))
    curves: dict[str, dict[int, list[tuple[int, float]]]] = {name: {} for name in config.train}
    for seed in range(arguments.seeds):
        folder = config.models[config.target].model
        if seed:
            folder = f"{folder}-{seed}"
            command = [sys.executable, str(EXAMPLES / "demo_student.py"), folder, str(seed)]
            subprocess.run(command, check=True)
        for name, run in config.train.items():
            trained = train_model(
                store,
                f"{name}-{seed}" if seed else name,
                folder,
                config.fuse.name,
                run.settings.model_copy(update={"seed": seed}),
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
