"""An estimate against the capture it speaks of, in turns and in one process: bytes and seconds.

The corpus is that of `fusestore demo`, the model SmolLM2. Each round estimates and then
captures, so that both sides see the same machine.

    python benchmarks/estimate.py [--rounds 3] [--dtype float32] [--device cpu] [--sample-tokens N]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from fusestore.capture.estimate import estimate_capture
from fusestore.capture.run import capture
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.run import build_corpus
from fusestore.models.model import Model
from fusestore.storage.location import Location
from fusestore.store.layout import Store
from fusestore.workflows.fusion_config import load_config

DEMO = Path(__file__).parent.parent / "fusestore/workflows/demo/demo.toml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sample-tokens", type=int, default=None)
    arguments = parser.parse_args()
    config = load_config(Location.parse(DEMO))
    models = [Model.open(config.models[name].model) for name in config.captured]
    settings = CaptureSettings(dtype=arguments.dtype, device=arguments.device)
    ratios: dict[str, list[float]] = {"bytes": [], "seconds": []}
    print("round  what             estimate           truth   ratio")
    with tempfile.TemporaryDirectory() as work:
        store = Store.open(work)
        corpus = build_corpus(
            store, "corpus", config.corpus.inputs, config.corpus, tokenizers=models
        ).artifact
        for number in range(arguments.rounds):
            estimate = estimate_capture(
                store,
                "estimate",
                models[0],
                corpus,
                settings,
                sample_tokens=arguments.sample_tokens,
                seed=number,
            )
            # The tokens that the first capture keeps would spare the later ones their work.
            (corpus.location / "tokens").delete()
            began = time.perf_counter()
            cache = capture(store, f"round-{number}", models[0], corpus, settings).artifact
            seconds = time.perf_counter() - began
            sides = {
                "bytes": (estimate.num_bytes, sum(cache.location.sizes().values())),
                "seconds": (estimate.seconds, seconds),
            }
            (corpus.location / "tokens").delete()
            for what, (guess, truth) in sides.items():
                ratios[what].append(guess / truth)
                print(f"{number:5}  {what:8}{guess:17,.1f}{truth:16,.1f}{guess / truth:8.3f}")
    print(f"sampled {estimate.sampled_tokens:,} of {estimate.num_tokens:,} tokens")
    for what, values in ratios.items():
        spread = f"{min(values):.3f} to {max(values):.3f}"
        print(f"median ratio of {what}: {statistics.median(values):.3f} ({spread})")


if __name__ == "__main__":
    main()
