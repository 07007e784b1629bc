"""Reads streams for `streams.py`, in a process of its own, by the public names alone.

So it may be run with another checkout's package (`PYTHONPATH`), to compare two versions in turns.
Reads JSON lines: url, options, cache, span, batch (null: samples), sizes (bytes of what is fetched
for each shard). Answers each with bytes per second from the first sample or batch to the end, the
seconds until the first one, and the seconds of the processor.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from fusestore.data import StreamingFusedDataset, StreamingLoader


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(read(**json.loads(line))), flush=True)


def read(
    url: str, options: dict[str, str], cache: str, span: int, batch: int | None, sizes: list[int]
) -> tuple[float, float, float]:
    have_memory_at_hand()
    stream = StreamingFusedDataset(url, storage_options=options, cache_dir=cache, shuffle_span=span)
    began, busy = time.perf_counter(), time.process_time()
    samples = iter(stream if batch is None else StreamingLoader(stream, batch))
    next(samples)
    first = time.perf_counter()
    there = sum(path.stat().st_size > 0 for path in Path(cache, "stream").glob("*/0*"))
    for sample in samples:
        if batch is None:
            # A sample is a map of memory; here each of its pages is looked at.
            for name in ("fused_ids", "fused_logprobs"):
                sample[name].view(-1)[:: 4096 // 4].sum()
    num_bytes = sum(sizes) * (1 - there / len(sizes))
    rate = num_bytes / (time.perf_counter() - first)
    return rate, first - began, time.process_time() - busy


def have_memory_at_hand() -> None:
    """See that this machine has as much memory as an epoch takes on its disk's cache, and more.

    A virtual machine may have given what was freed back to its host, and then gets it again page by
    page when it is written to: here 4 us each, as long as everything else that a stream does.
    """
    np.ones(1_500_000_000, np.uint8)


if __name__ == "__main__":
    main()
