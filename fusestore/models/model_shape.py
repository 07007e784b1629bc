"""`ModelShape`: how many weights a model has and where, from its configuration or GGUF header.

No weights are read. transformers builds the model on the device `meta`, which has shapes and no
memory: 70 B parameters take a third of a second. So the count is that of the class that would be
loaded, whatever the configuration calls its fields.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusestore.errors import InvalidInputError
from fusestore.models.folder_kinds import check_loadable
from fusestore.models.gguf_parts import gguf_parts
from fusestore.models.model import Model
from fusestore.models.weight_files import SAFETENSORS_FILE, json_object, weight_files
from fusestore.storage.gguf_file import gguf_field, open_gguf

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_BLOCK_TENSOR = re.compile(r"blk\.(\d+)\.")
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k")


@dataclass(frozen=True)
class Unit:
    """Weights that stay together on one device: a layer, or a part outside the layers.

    Attributes:
        name: of the module, or of the tensors' group in a GGUF file.
        parameters: all of them; tied ones count where they come first.
        linear: those in matrices that 8 bit and 4 bit quantize.
        linear_rows: output features of these matrices.
        experts: those in stacks of experts' matrices.
        split: those that a plan of tensor parallelism divides.
        width: numbers that its matrices return for a token, together.
    """

    name: str
    parameters: int
    linear: int = 0
    linear_rows: int = 0
    experts: int = 0
    split: int = 0
    width: int = 0


@dataclass(frozen=True)
class ModelShape:
    """What of a model decides how much memory it takes.

    Attributes:
        units: in the order in which a token passes them.
        vocab_size: width of the output.
        hidden_size: width of the hidden states.
        kv_size: numbers that a key-value cache holds for a token, in all layers; 0 if not known.
        context: most tokens of a document; None for no limit.
        quantization: `quantization_config` of its folder, if the weights there are quantized.
        stored_bytes: bytes of the weights as they are stored, if files or their index say it.
        is_gguf: whether it is a GGUF file.
    """

    units: tuple[Unit, ...]
    vocab_size: int
    hidden_size: int
    kv_size: int
    context: int | None
    quantization: dict[str, Any] | None
    stored_bytes: int | None
    is_gguf: bool

    @property
    def num_parameters(self) -> int:
        """All parameters."""
        return sum(unit.parameters for unit in self.units)


def model_shape(model: Model) -> ModelShape:
    """The shape of a model; of a hub model no weights are downloaded.

    Raises:
        NotFoundError: there is no such model.
        InvalidInputError: it is no causal language model, or cannot be built without its weights.
        MissingDependencyError: it is a GGUF file, and the package `gguf` is not installed.
    """
    if model.gguf is not None:
        return _gguf_shape(model.gguf)
    return config_shape(
        model.config,
        model.spec,
        folder=model.description,
        trust_remote_code=model.trust_remote_code,
    )


def config_shape(
    config: Any,  # noqa: ANN401 - transformers is untyped
    name: str,
    *,
    folder: Path | None = None,
    trust_remote_code: bool = False,
) -> ModelShape:
    """The shape of the model that transformers makes of a configuration.

    Args:
        config: of transformers.
        name: of the model in messages.
        folder: where its weights or their index may be.
        trust_remote_code: build classes of the folder.

    Raises:
        InvalidInputError: it is no causal language model, or cannot be built on `meta`.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    check_loadable(config, name)
    auto: Any = AutoModelForCausalLM
    try:
        with torch.device("meta"), no_init_weights():
            model = auto.from_config(
                config, dtype=torch.float32, trust_remote_code=trust_remote_code
            )
            # Without initialization it is left out.
            model.tie_weights()
    except Exception as error:
        # The code of a model's class may raise anything.
        raise InvalidInputError(
            f"The weights of {name} cannot be counted from its configuration: its class "
            f"{type(config).__name__} fails without them ({type(error).__name__}: {error}). "
            "Check config.json, and that the installed transformers supports the model."
        ) from error
    text = config.get_text_config()
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None and not isinstance(quantization, dict):
        quantization = quantization.to_dict()
    return ModelShape(
        units=tuple(_units(model, _experts_per_token(text))),
        vocab_size=int(text.vocab_size),
        hidden_size=int(model.get_input_embeddings().weight.shape[-1]),
        kv_size=_kv_size(text),
        context=_positive(text, "max_position_embeddings"),
        quantization=quantization,
        stored_bytes=None if folder is None else _stored_bytes(folder),
        is_gguf=False,
    )


def _units(model: Any, experts_per_token: int) -> Iterator[Unit]:  # noqa: ANN401
    """Layers whole, and each part outside them, in the order of the module tree."""
    whole = set(model._no_split_modules or ())
    plan = {_NUMBER.sub("*", name) for name in (model._tp_plan or {})}
    head = model.get_output_embeddings()
    counted: set[int] = set()

    def visit(module: Any, name: str, in_list: bool) -> Iterator[Unit]:  # noqa: ANN401
        is_layer = type(module).__name__ in whole or (in_list and not whole)
        parts = module.named_modules(prefix=name) if is_layer else [(name, module)]
        unit = _unit(name, parts, head, plan, counted, experts_per_token)
        if unit.parameters or unit.width:
            yield unit
        if not is_layer:
            for child, part in module.named_children():
                is_list = type(module).__name__ == "ModuleList"
                yield from visit(part, f"{name}.{child}".lstrip("."), is_list)

    yield from visit(model, "", False)


def _unit(
    name: str,
    modules: Any,  # noqa: ANN401 - of torch, with their names
    head: Any,  # noqa: ANN401
    plan: set[str],
    counted: set[int],
    experts_per_token: int,
) -> Unit:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    parameters = linear = rows = experts = split = width = 0
    for path, module in modules:
        # bitsandbytes replaces these classes, and none that are derived from them.
        is_linear = type(module) in (nn.Linear, Conv1D)
        out = 0
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            out = int(module.weight.shape[1 if isinstance(module, Conv1D) else 0])
            width += out
        is_stack = not type(module).__module__.startswith("torch.nn")
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) in counted:
                continue
            counted.add(id(parameter))
            count = parameter.numel()
            parameters += count
            if _NUMBER.sub("*", path) in plan or _NUMBER.sub("*", f"{path}.{key}") in plan:
                split += count
            if is_linear and key == "weight" and module is not head:
                linear += count
                rows += out
            elif is_stack and parameter.dim() == 3:
                experts += count
                # Rows and columns stand in either order; the larger is at least the result's.
                width += experts_per_token * max(parameter.shape[1:])
    return Unit(name, parameters, linear, rows, experts, split, width)


def _experts_per_token(config: Any) -> int:  # noqa: ANN401
    found = [_positive(config, name) for name in _EXPERTS_PER_TOKEN]
    return next((number for number in found if number is not None), 1)


def _kv_size(config: Any) -> int:  # noqa: ANN401
    layers = _positive(config, "num_hidden_layers") or 0
    latent = _positive(config, "kv_lora_rank")
    if latent is not None:
        # Multi-head latent attention keeps one compressed vector, and one for positions.
        return layers * (latent + (_positive(config, "qk_rope_head_dim") or 0))
    heads = _positive(config, "num_attention_heads")
    hidden = _positive(config, "hidden_size")
    if heads is None or hidden is None:
        return 0
    kv_heads = _positive(config, "num_key_value_heads") or heads
    return layers * 2 * kv_heads * (_positive(config, "head_dim") or hidden // heads)


def _positive(config: Any, name: str) -> int | None:  # noqa: ANN401
    value = getattr(config, name, None)
    return value if type(value) is int and value > 0 else None


def _stored_bytes(folder: Path) -> int | None:
    """Bytes of the weights by their files, or by the index alone."""
    files = weight_files(folder)
    if files and all(file.is_file() for file in files):
        return sum(file.stat().st_size for file in files)
    index = folder / f"{SAFETENSORS_FILE}.index.json"
    if not index.is_file():
        return None
    metadata = json_object(index).get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return int(total) if isinstance(total, int | float) and total > 0 else None


def _gguf_shape(file: Path) -> ModelShape:
    """The shape of a GGUF file, from its header and those of its parts."""
    readers = [open_gguf(part) for part in gguf_parts(file.absolute())]
    first = readers[0]
    architecture = gguf_field(first, "general.architecture")

    def field(name: str) -> int | None:
        value = gguf_field(first, f"{architecture}.{name}")
        if isinstance(value, list) and value:
            # Layers may differ; the largest counts for all.
            value = max(value)
        return int(value) if isinstance(value, int) and value > 0 else None

    hidden, heads = field("embedding_length"), field("attention.head_count")
    layers, tokens = field("block_count"), gguf_field(first, "tokenizer.ggml.tokens")
    if hidden is None or layers is None or not isinstance(tokens, list):
        raise InvalidInputError(
            f"{file} holds no language model: its header lacks {architecture}.embedding_length, "
            f"{architecture}.block_count or tokenizer.ggml.tokens. Give the model's file."
        )
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    kv_heads = field("attention.head_count_kv") or heads or 0
    head_size = field("attention.key_length") or (hidden // heads if heads else 0)
    return ModelShape(
        units=tuple(_gguf_units(tensors, field("expert_used_count") or 1)),
        vocab_size=len(tokens),
        hidden_size=hidden,
        kv_size=2 * layers * kv_heads * head_size,
        context=field("context_length"),
        quantization=None,
        stored_bytes=sum(int(tensor.n_bytes) for tensor in tensors),
        is_gguf=True,
    )


def _gguf_units(tensors: list[Any], experts_per_token: int) -> Iterator[Unit]:
    groups: dict[str, list[Any]] = {}
    for tensor in tensors:
        match = _BLOCK_TENSOR.match(tensor.name)
        groups.setdefault(match[0].rstrip(".") if match else tensor.name, []).append(tensor)
    # The file has its tensors in any order.
    order = sorted(groups, key=lambda name: (_place(name), name))
    for name in order:
        layer = name.startswith("blk.")
        matrices = [each for each in groups[name] if layer and len(each.shape) == 2]
        stacks = [each for each in groups[name] if layer and len(each.shape) == 3]
        rows = sum(int(each.shape[1]) for each in matrices)
        yield Unit(
            name=name,
            parameters=sum(int(each.n_elements) for each in groups[name]),
            linear=sum(int(each.n_elements) for each in matrices),
            linear_rows=rows,
            experts=sum(int(each.n_elements) for each in stacks),
            split=sum(int(each.n_elements) for each in (*matrices, *stacks)),
            width=rows + experts_per_token * sum(int(max(each.shape[:2])) for each in stacks),
        )


def _place(name: str) -> int:
    """Embeddings first, then layers by number, then what follows them."""
    match = re.fullmatch(r"blk\.(\d+)", name)
    if match:
        return int(match[1]) + 1
    return 0 if name.startswith("token_embd") else 2**31
