"""Tiny GGUF files, written as llama.cpp's converter writes them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import gguf
import numpy as np
import numpy.typing as npt
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

Tensors = dict[str, npt.NDArray[np.float32]]


def write_gguf(
    path: Path,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    change: Callable[[Tensors], Tensors] = lambda tensors: tensors,
    *,
    architecture: str = "llama",
    kind: str = "model",
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    tensors_per_part: int = 0,
    metadata: Mapping[str, str | float | bool] = MappingProxyType({}),
) -> list[Path]:
    """Write a Llama with a byte-level BPE tokenizer as a GGUF file.

    Args:
        path: the file; parts get names that are made of it.
        model: the model.
        tokenizer: its tokenizer.
        change: alters the tensors before they are written.
        architecture, kind: the file's `general.architecture` and `general.type`.
        quantization: of the matrices.
        tensors_per_part: write parts of that many tensors; 0 for one file.
        metadata: further keys.

    Returns:
        The file, or its parts in order.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=tensors_per_part)
    writer.add_type(kind)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    for key, value in metadata.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        else:
            writer.add_float32(key, value)
    _add_tokenizer(writer, tokenizer)
    for name, tensor in change(_tensors(model)).items():
        form = quantization if tensor.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(tensor, form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(path.parent.glob(f"{path.stem}-*-of-*.gguf")) or [path]


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary: Mapping[str, int] = content["model"]["vocab"]
    special = {token["id"] for token in content["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.__getitem__))
    writer.add_token_types([3 if index in special else 1 for index in range(len(vocabulary))])
    writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)


def _tensors(model: LlamaForCausalLM) -> Tensors:
    config = model.config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    tensors = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        base, _, ending = name.rpartition(".")
        stored = names.get_name(base)
        array = value.float().numpy()
        count = heads.get(stored.rpartition(".")[2])
        if count is not None:
            # llama.cpp rotates neighboring rows, transformers rows half a head apart.
            halves = array.reshape(count, 2, -1, array.shape[1])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        tensors[f"{stored}.{ending}"] = np.ascontiguousarray(array)
    return tensors
