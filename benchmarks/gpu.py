"""What a GPU is prepared to be asked, in one run of a few minutes. Nothing is downloaded.

    capture     everything `fusestore capture` does after loading a model of 1.7 B parameters in
                bfloat16, as a multiple of the bare forward pass of the same batches
    selection   its share of a capture, by itself
    packing     tokens a second: documents padded as before, in length buckets, and packed
    loss        the fusion loss, forward and backward, at a vocabulary of 262,144: whole logits and
                logits in chunks, time and peak memory

    python benchmarks/gpu.py --out gpu.json      # or `make gpu`
    python benchmarks/gpu.py --toy               # a try of the script on any machine

Exits with 1 if a capture costs more than `--limit` of the bare pass; not with --toy, where the
model is no work beside the rest. The JSON has the card's name and the version of torch.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from capture import SHARD, bare, capture, random_model, sampled_order
from losses import fused_rows
from packing import divide, random_documents, rates, waste, web_lengths

from fusestore.cache.rule import Rule
from fusestore.capture.batches import limits_on
from fusestore.capture.selection import select
from fusestore.losses import fusion_loss, linear_fusion_loss
from fusestore.models.causality import Batching, prove_causal
from fusestore.models.loading import output_width
from fusestore.models.packed_rows import packing_of
from fusestore.tokenizers.token_table import TokenTable

K = 32


def main() -> None:
    arguments = parse()
    device = arguments.device
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "torch": torch.__version__,
        "sizes": {name: getattr(arguments, name) for name in SIZES},
    }
    model = random_model(device, arguments.hidden, arguments.layers, arguments.vocab)
    lengths = web_lengths(arguments.tokens)
    tokens = table(lengths, output_width(model))
    proof = prove_causal(model, tokens.token_ids, int(lengths[0]), "model", packing_of(model))
    found["capture"] = measure_capture(model, tokens, proof.batching, arguments)
    found["selection"] = measure_selection(model, found["capture"], tokens.num_tokens, arguments)
    found["packing"] = measure_packing(model, lengths, arguments)
    del model
    if device == "cuda":
        torch.cuda.empty_cache()
    found["loss"] = {form: measure_loss(form, arguments) for form in ("whole", "chunked")}
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    ratio = found["capture"]["ratio"]
    if not arguments.toy and ratio > arguments.limit:
        sys.exit(f"A capture costs {ratio:.3f} of the bare pass; the limit is {arguments.limit}.")


SIZES = {
    "hidden": (2_048, 64, "width of the model; SmolLM2-1.7B's"),
    "layers": (24, 2, "layers of the model"),
    "vocab": (49_152, 512, "ids of the model"),
    "tokens": (SHARD, 1_500, "tokens that are captured"),
    "loss_vocab": (262_144, 1_024, "ids of the loss"),
    "loss_hidden": (2_048, 32, "width of its hidden states"),
    "loss_tokens": (4_096, 64, "positions of the loss"),
    "rounds": (5, 1, "rounds in turns; medians are kept"),
}
"""Sizes, with those of `--toy`."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="the JSON file that is written")
    parser.add_argument("--toy", action="store_true", help="small sizes for whatever is not given")
    parser.add_argument("--limit", type=float, default=1.05, help="of capture by bare pass")
    for name, (size, _, description) in SIZES.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=int, help=f"{description} (by default {size:,})")
    arguments = parser.parse_args()
    for name, (size, toy, _) in SIZES.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, toy if arguments.toy else size)
    return arguments


def table(lengths: np.ndarray, vocab_size: int) -> TokenTable:
    ids = np.concatenate(random_documents(lengths, vocab_size))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenTable(ids, np.zeros(len(ids), np.int32), offsets)


def measure_capture(
    model: Any, tokens: TokenTable, batching: Batching, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Seconds of both sides in turns; the bare one has the head on chunks, as the capture."""
    rule = Rule("top-k", K)
    order = sampled_order(model, tokens, rule)
    sides = {
        "bare": lambda: bare(model, tokens, batching, whole=False),
        "capture": lambda: capture(model, tokens, rule, order, batching),
    }
    seconds = in_turns(sides, arguments)
    return {
        "batching": batching,
        "tokens": tokens.num_tokens,
        "bare_seconds": seconds["bare"],
        "capture_seconds": seconds["capture"],
        "tokens_per_second": tokens.num_tokens / seconds["capture"],
        "ratio": seconds["capture"] / seconds["bare"],
    }


def measure_selection(
    model: Any, captured: dict[str, Any], num_tokens: int, arguments: argparse.Namespace
) -> dict[str, float]:
    """The top k of some rows of random logits; their share of a capture's time."""
    n = min(4_096, num_tokens)
    dtype = next(model.parameters()).dtype
    logits = torch.randn(n, output_width(model), device=arguments.device).to(dtype)
    rows = np.arange(n)
    positions, labels = torch.from_numpy(rows), torch.zeros(n, dtype=torch.int64)
    repeats = 10

    def run() -> None:
        for _ in range(repeats):
            # A copy, because selection overwrites logits on a GPU: indexing makes one anyway.
            select(Rule("top-k", K), logits, positions, labels, rows)

    seconds = in_turns({"selection": run}, arguments)["selection"] / repeats / n
    return {
        "microseconds_a_row": 1e6 * seconds,
        "share_of_capture": seconds * num_tokens / captured["capture_seconds"],
    }


def measure_packing(
    model: Any, lengths: np.ndarray, arguments: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Tokens a second and padding of each way to divide documents, by attention."""
    limits = limits_on(arguments.device)
    documents = random_documents(lengths, output_width(model))
    ways = {"sdpa": ("as before", "buckets", "rows")}
    if arguments.device == "cuda" and importlib.util.find_spec("flash_attn"):
        ways["flash_attention_2"] = ("as before", "buckets", "one row")
    found = {}
    for attention, names in ways.items():
        model.set_attn_implementation(attention)
        for name, rate in rates(model, documents, names, limits, arguments.rounds).items():
            found[f"{attention}, {name}"] = {
                "tokens_per_second": rate,
                "padding": waste(divide(name, lengths, limits)),
            }
    return found


def measure_loss(form: str, arguments: argparse.Namespace) -> dict[str, float | None]:
    """Seconds of loss and gradients, and bytes above hidden states, weights and targets."""
    on_cuda = arguments.device == "cuda"
    shape = (1, arguments.loss_tokens)
    batch = {
        "next_ids": torch.randint(arguments.loss_vocab, shape),
        **fused_rows(shape, arguments.loss_vocab, K),
    }
    batch = {name: tensor.to(arguments.device) for name, tensor in batch.items()}
    torch.manual_seed(0)
    dtype = torch.bfloat16 if on_cuda else torch.float32
    options: dict[str, Any] = {"device": arguments.device, "dtype": dtype}
    hidden = torch.randn(*shape, arguments.loss_hidden, **options).requires_grad_()
    weight = torch.randn(arguments.loss_vocab, arguments.loss_hidden, **options) * 0.05
    weight.requires_grad_()
    before = torch.cuda.memory_allocated() if on_cuda else 0
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()

    def run() -> None:
        hidden.grad = weight.grad = None
        if form == "whole":
            loss = fusion_loss(torch.nn.functional.linear(hidden, weight), batch)
        else:
            loss = linear_fusion_loss(hidden, weight, batch)
        loss.backward()

    seconds = in_turns({form: run}, arguments)[form]
    peak = torch.cuda.max_memory_allocated() - before if on_cuda else None
    return {"seconds": seconds, "peak_bytes": peak}


def in_turns(
    sides: dict[str, Callable[[], None]], arguments: argparse.Namespace
) -> dict[str, float]:
    """Median seconds of each side; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_number in range(arguments.rounds + 1):
        for name, run in sides.items():
            began = time.perf_counter()
            run()
            if arguments.device == "cuda":
                torch.cuda.synchronize()
            if round_number:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    main()
