"""Captures every type of causal language model that transformers has, and checks each row.

Each type is built at tiny size with random weights, from its own default configuration. What a
capture does after loading runs over a few documents: the proof, packed and padded batches, logits
in chunks, selection. Its rows are compared with those of the plain model, which reads one document
at a time, `model(input_ids).logits`. A type is

    right      all rows are equal, but for rounding
    refused    the capture refuses the model, and says why
    wrong      some row differs: a defect of fusestore
    not built  no tiny model can be made of the configuration, or it does not run on token ids

    python benchmarks/architectures.py                      # all types, about five minutes
    python benchmarks/architectures.py opt llama4_text bert # these
    python benchmarks/architectures.py --write docs/model_types.md

Exits with 1 if a type is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import re
import sys
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from fusestore.cache.rule import Rule
from fusestore.capture.engines.transformers_engine import TransformersEngine
from fusestore.capture.row_capturer import RowCapturer
from fusestore.errors import IncompatibleError
from fusestore.models import logits as engine
from fusestore.models.causality import Batching, prove_causal
from fusestore.models.loading import output_width
from fusestore.models.packed_rows import packing_of
from fusestore.progress import ignore_progress
from fusestore.tokenizers.token_table import TokenTable

LAYERS = 4
VOCAB_SIZE = 160
LENGTHS = (45, 23, 23, 9, 1, 36)
"""Tokens of the documents: longer than the windows below, and not in order."""

MAX_PARAMETERS = 50_000_000
SECONDS = 120
"""Time limit of a type."""

TOLERANCE = 1e-4
"""Distance of log-probabilities that is rounding in float32, in nats."""

SIZES: tuple[tuple[int, str], ...] = (
    (VOCAB_SIZE, "vocab_size n_words decoder_vocab_size vocab_size_per_layer_input"),
    (
        LAYERS,
        "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers "
        "num_blocks num_decoder_layers num_encoder_layers num_layers_per_stack",
    ),
    (
        4,
        "num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads "
        "encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads "
        "num_experts num_local_experts n_routed_experts moe_num_experts linear_num_heads "
        "linear_num_value_heads linear_num_key_heads index_n_heads indexer_n_heads n_mamba_heads "
        # Fewer than the documents have, so that they matter.
        "sliding_window local_attention attention_window_size window_size",
    ),
    (
        2,
        "num_key_value_heads num_kv_heads kv_n_heads num_global_key_value_heads "
        "num_experts_per_tok num_experts_per_token moe_k moe_topk moe_top_k top_k_experts "
        "zero_expert_num "
        "first_k_dense_replace patch_size num_codebooks",
    ),
    (
        1,
        "n_group topk_group n_groups mamba_n_groups mamba_ngroups num_shared_experts "
        "n_shared_experts moe_num_shared_experts",
    ),
    (
        16,
        "head_dim global_head_dim v_head_dim qk_nope_head_dim qk_rope_head_dim kv_lora_rank "
        "q_lora_rank o_lora_rank linear_key_head_dim linear_value_head_dim linear_head_dim "
        "dim_head d_head attention_head_size kv_channels mamba_d_state mamba_d_head mamba_head_dim "
        "mamba_headdim state_size ssm_state_size chunk_size mamba_chunk_size attention_chunk_size "
        "hidden_size_per_layer_input laurel_rank altup_lora_rank "
        "head_dim_global swa_head_dim swa_v_head_dim",
    ),
    (
        8,
        "rotary_dim mamba_n_heads mamba_num_heads adapter_rank",
    ),
    (
        64,
        "hidden_size d_model n_embd emb_dim dim embed_dim embedding_dim embedding_size lru_width "
        "word_embed_proj_dim attention_hidden_size input_embedding_size output_embedding_size "
        "hidden_size_global dim_model_base backbone_hidden_size ple_embed_dim moe_latent_size",
    ),
    (
        96,
        "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner ffn_hidden_size "
        "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size dim_ff dff "
        "d_inner feed_forward_size intermediate_size_mlp expert_ffn_hidden_size mlp_dim "
        "moe_shared_expert_intermediate_size shared_experts_intermediate_size "
        "prefix_dense_intermediate_size router_hidden_size dense_intermediate_size",
    ),
    # More than the documents have: random weights give equal scores to many tokens, and which of
    # them are among the largest depends on the length of the document.
    (64, "index_topk indexer_budget"),
    (
        256,
        "max_position_embeddings n_positions max_target_positions max_seq_len n_ctx context_length",
    ),
    (32, "image_size index_head_dim indexer_head_dim qk_head_dim"),
    (0, "pad_token_id bos_token_id eos_token_id padding_idx pad_index"),
)
"""Values of configuration keys, whichever of them a type has."""

SPECIAL: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1]},
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_method": "greedy"},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note": {"num_key_value_heads": 4},
    "dots3_note_text": {"num_key_value_heads": 4},
    "falcon_h1": {"mamba_d_ssm": 128},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "granitemoehybrid": {"layer_types": 2 * ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": 2 * ["linear_attention", "full_attention"]},
    "lfm2_moe": {"layer_types": 2 * ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "nemotron": {"num_key_value_heads": 4, "head_dim": 16},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}
"""More values for types whose sizes depend on each other."""


ROW = re.compile(r"^\| `(\S+)` \| (right|refused|wrong|not built) \| (.*) \|$", re.MULTILINE)
"""A row of the page's table."""


class Outcome(NamedTuple):
    """What became of a type: `right`, `refused`, `wrong` or `not built`, and more about it."""

    kind: str
    note: str


def main() -> None:
    arguments = parse()
    types = arguments.types or list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    outcomes = {}
    # So that no process has to import and compile what all need.
    check("llama")
    for model_type in types:
        outcomes[model_type] = outcome = in_a_process(model_type)
        print(f"{model_type:26}{outcome.kind:11}{outcome.note}", flush=True)
    print(summary(outcomes))
    if arguments.write:
        write(arguments.write, outcomes)
    sys.exit(any(outcome.kind == "wrong" for outcome in outcomes.values()))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("types", nargs="*", help="types of models; by default all")
    parser.add_argument("--write", type=Path, help="the page that receives the table")
    return parser.parse_args()


def in_a_process(model_type: str) -> Outcome:
    """The outcome of a type, in a process of its own: some types need much memory or time."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=send, args=(model_type, sender))
    process.start()
    sender.close()
    try:
        if receiver.poll(SECONDS):
            return receiver.recv()
        return Outcome("not built", f"takes more than {SECONDS} s")
    except EOFError:
        process.join()
        return Outcome("not built", f"the process died ({process.exitcode})")
    finally:
        process.kill()
        process.join()


def send(model_type: str, sender: Connection) -> None:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # noqa: PTH123
        warnings.simplefilter("ignore")
        transformers.logging.set_verbosity_error()
        sender.send(check(model_type))


def check(model_type: str) -> Outcome:
    try:
        model = build(model_type)
    except Exception as error:
        return Outcome("not built", one_line(error))
    tokens = documents(output_width(model))
    try:
        expected = [plain_rows(model, tokens, index) for index in range(tokens.num_documents)]
    except Exception as error:
        return Outcome("not built", f"runs on more than token ids: {one_line(error)}")
    try:
        proof = prove_causal(model, tokens.token_ids, max(LENGTHS), model_type, packing_of(model))
    except IncompatibleError as error:
        return Outcome("refused", str(error).partition(". ")[0].partition(") ")[2])
    width = output_width(model)
    # Chunks of a few positions, so that the head runs several times.
    engine.CHUNK_LOGITS["cpu"] = len(LENGTHS) * width * 11
    plain = np.concatenate(expected)
    # Without a GPU, and with `batch_size`, documents that could be packed are padded.
    batchings: list[Batching] = [proof.batching]
    if proof.batching == "rows":
        batchings.append("padded")
    largest = 0.0
    for batching in batchings:
        capturer = RowCapturer(
            TransformersEngine(model, None, batching), tokens, Rule("top-k", width)
        )
        rows, bad = capturer.rows(0, tokens.num_tokens, ignore_progress)
        if bad:
            return Outcome("wrong", f"documents {bad} are not finite, {batching}")
        captured = np.empty_like(rows.logprobs)
        np.put_along_axis(captured, rows.ids.astype(np.int64), rows.logprobs, axis=1)
        largest = max(largest, float(np.abs(captured - plain).max()))
    way = "packed" if proof.batching == "rows" else proof.batching
    note = "; ".join([f"{largest:.0e} nats, {way}", *proof.notes()])
    return Outcome("right" if largest <= TOLERANCE else "wrong", note)


def build(model_type: str) -> Any:
    """A tiny random model of a type, sharp enough that its rows differ from each other."""
    config = shrunk(CONFIG_MAPPING[model_type], SPECIAL.get(model_type, {}))
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > MAX_PARAMETERS:
        raise ValueError(f"{size:,} parameters at the smallest size that is known here")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    return model


def shrunk(config_class: Any, special: dict[str, Any]) -> Any:
    """The configuration of a class at the sizes above; those inside of it too."""
    default = config_class()
    known = default.to_dict()
    values = {
        key: size for size, keys in SIZES for key in keys.split() if isinstance(known.get(key), int)
    }
    if "kv_lora_rank" in values and "num_attention_heads" in values:
        # Multi-head latent attention has as many of both.
        values["num_key_value_heads"] = values["num_attention_heads"]
    layers = {known[key] for key in SIZES[1][1].split() if key in values}
    for key, value in known.items():
        if isinstance(value, list) and len(value) in layers:
            values[key] = value[:LAYERS]
    for key in config_class.sub_configs:
        part = getattr(default, key, None)
        if part is not None:
            values[key] = shrunk(type(part), special.get(key, {}))
            # The whole may have given its part more than the part's class has.
            for name, value in vars(part).items():
                if not hasattr(values[key], name):
                    setattr(values[key], name, value)
    values |= {key: value for key, value in special.items() if not isinstance(value, dict)}
    return config_class(**values)


def documents(width: int) -> TokenTable:
    ids = np.random.default_rng(0).integers(5, min(width, VOCAB_SIZE) - 30, sum(LENGTHS))
    offsets = np.cumsum([0, *LENGTHS]).astype(np.int64)
    return TokenTable(ids.astype(np.int32), np.zeros(len(ids), np.int32), offsets)


@torch.no_grad()
def plain_rows(model: Any, tokens: TokenTable, index: int) -> np.ndarray:
    """Log-probabilities float64 [time, V] of a document that the plain model reads alone."""
    ids = torch.from_numpy(tokens.document(index)[0].astype(np.int64))
    return torch.log_softmax(model(input_ids=ids[None]).logits[0].double(), -1).numpy()


def one_line(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text[:160]


def write(page: Path, outcomes: dict[str, Outcome]) -> None:
    """Write the table between the marks of the page; types that were not run keep their rows."""
    text = page.read_text()
    rows = {name: Outcome(*rest) for name, *rest in ROW.findall(text)} | outcomes
    order = [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    lines = [
        summary(rows),
        "",
        "| type | outcome | largest distance, or reason |",
        "|---|---|---|",
        *(
            f"| `{name}` | {rows[name].kind} | {rows[name].note.replace('|', '/')} |"
            for name in order
            if name in rows
        ),
    ]
    marked = re.compile("(<!-- figures -->\n).*(<!-- end of figures -->)", re.DOTALL)
    table = "\n".join(lines)
    page.write_text(marked.sub(lambda m: f"{m[1]}\n{table}\n\n{m[2]}", text))


def summary(outcomes: dict[str, Outcome]) -> str:
    counts = Counter(outcome.kind for outcome in outcomes.values())
    kinds = ", ".join(
        f"{counts[kind]} {kind}" for kind in ("right", "refused", "wrong", "not built")
    )
    packed = sum(
        "packed" in outcome.note for outcome in outcomes.values() if outcome.kind == "right"
    )
    return (
        f"{len(outcomes)} types of transformers {transformers.__version__}: {kinds}. Of the right "
        f"ones {packed} are packed where there is a GPU."
    )


if __name__ == "__main__":
    main()
