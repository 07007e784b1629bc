"""What padding costs a capture: documents in batches as before, in length buckets, and packed.

Lengths are those of a web corpus: log-normal with median 400 and σ = 1, at most 4,096 (so the mean
is about 610, and one document in a hundred is cut). One shard of 262,144 tokens is divided at a
time. Rates are of the forward pass with all logits, every way in turns, over the same documents; on
a CPU by processor time, which other work of the machine changes little.

    as before   as many padded documents as fit, with an attention mask
    buckets     padded documents of about equal length, without a mask
    rows        packed in rows about as wide as the longest document of the batch
    one row     packed in one row: for flash and block-mask kernels only

    python benchmarks/packing.py                                 # a small random model on a CPU
    python benchmarks/packing.py --model smollm2 --tokens 20000

Figures of the last run stand in docs/capture.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from capture import SHARD, random_model, smollm2

from fusestore.capture.batches import Batch, Limits, limits_on, plan_batches
from fusestore.models.batch_layout import BatchLayout
from fusestore.models.causality import Batching
from fusestore.models.loading import output_width
from fusestore.models.logits import logit_chunks

WAYS: dict[str, Batching | None] = {
    "as before": None,
    "buckets": "padded",
    "rows": "rows",
    "one row": "one row",
}
"""Ways to divide documents, with the name of their `Batching`."""

Documents = Sequence[npt.NDArray[np.int32]]


def web_lengths(total: int, seed: int = 0, sigma: float = 1.0) -> npt.NDArray[np.int64]:
    """Lengths of documents with about `total` tokens together, longest first."""
    rng = np.random.default_rng(seed)
    lengths: list[int] = []
    while sum(lengths) < total:
        lengths.append(int(np.clip(round(rng.lognormal(np.log(400), sigma)), 1, 4_096)))
    return np.sort(np.array(lengths))[::-1].copy()


def divide(way: str, lengths: npt.NDArray[np.int64], limits: Limits) -> list[Batch]:
    """The batches of a shard."""
    batching = WAYS[way]
    if batching is not None:
        return list(plan_batches(lengths, batching, limits))
    batches = []
    start = 0
    while start < len(lengths):
        stop = min(start + max(1, limits.tokens // int(lengths[start])), len(lengths))
        batches.append(Batch(np.arange(start, stop), BatchLayout.padded(lengths[start:stop])))
        start = stop
    return batches


def waste(batches: Iterable[Batch]) -> float:
    """The share of token ids that are padding."""
    layouts = [batch.layout for batch in batches]
    tokens = sum(int(layout.lengths.sum()) for layout in layouts)
    return 1 - tokens / sum(layout.size for layout in layouts)


def random_documents(lengths: npt.NDArray[np.int64], vocab_size: int) -> Documents:
    """Token ids of documents of given lengths."""
    ids = np.random.default_rng(0).integers(vocab_size, size=lengths.sum(), dtype=np.int32)
    return np.split(ids, np.cumsum(lengths)[:-1])


@torch.inference_mode()
def forward(model: Any, documents: Documents, batches: Iterable[Batch], way: str) -> None:
    """The pass of all batches, its logits made and dropped."""
    device = next(model.parameters()).device
    for batch in batches:
        input_ids, position_ids = batch.layout.tensors(
            [documents[i] for i in batch.documents], device
        )
        mask = None
        if way == "as before":
            columns = np.arange(batch.layout.width)
            mask = torch.from_numpy(columns < batch.layout.lengths[:, None]).long().to(device)
        for _ in logit_chunks(model, input_ids, mask, position_ids):
            pass
    if device.type == "cuda":
        torch.cuda.synchronize()


def rates(
    model: Any, documents: Documents, ways: Sequence[str], limits: Limits, rounds: int
) -> dict[str, float]:
    """Tokens (of documents) a second, medians of rounds in turns; on a CPU of processor time."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    lengths = np.array([len(ids) for ids in documents])
    batches = {way: divide(way, lengths, limits) for way in ways}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for round_number in range(rounds + 1):
        for way in ways:
            began = clock()
            forward(model, documents, batches[way], way)
            # The first round pays for the device's first allocations.
            if round_number:
                seconds[way].append(clock() - began)
    return {way: lengths.sum() / statistics.median(seconds[way]) for way in ways}


def main() -> None:
    arguments = parse()
    accelerator = limits_on("cuda")
    print(f"{SHARD:,} tokens at {accelerator.tokens:,} a batch, means of 10 shards")
    for way in WAYS:
        shards = [divide(way, web_lengths(SHARD, seed), accelerator) for seed in range(10)]
        wasted = [waste(batches) for batches in shards]
        print(
            f"{way:12}padding {statistics.mean(wasted):7.2%} (at most {max(wasted):.2%})"
            f"{statistics.mean(map(len, shards)):8.1f} batches"
        )
    model = smollm2() if arguments.model == "smollm2" else random_model("cpu", 256, 4, 8_192)
    limits = limits_on("cpu")
    lengths = web_lengths(arguments.tokens)
    documents = random_documents(lengths, output_width(model))
    print(
        f"{arguments.model} model on a CPU, {lengths.sum():,} tokens at {limits.tokens:,} a batch, "
        f"{torch.get_num_threads()} threads, {arguments.rounds} rounds"
    )
    ways = ("as before", "buckets", "rows")
    found = rates(model, documents, ways, limits, arguments.rounds)
    for way, rate in found.items():
        print(
            f"{way:12}padding {waste(divide(way, lengths, limits)):7.2%}{rate:10,.0f} tokens/s"
            f"{rate / found['as before']:8.3f}x"
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=["random", "smollm2"], default="random")
    parser.add_argument("--tokens", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
