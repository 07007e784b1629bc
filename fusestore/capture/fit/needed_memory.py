"""Bytes of a capture: weights in each way of loading, and what a batch needs beside them. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fusestore.models.model_shape import ModelShape, Unit

WayName = Literal["bfloat16", "float32", "8 bit", "4 bit", "as it is"]

_INT8_SCALE = 4
"""Bytes beside each row of a matrix in 8 bit: bitsandbytes' scale."""

_NF4_BLOCK = 64
"""Weights of a matrix in 4 bit that share a scale of 4 bytes."""

_MXFP4 = (4 + 8 / 32) / 8
"""Bytes of a weight in MXFP4: 4 bits, and 8 bits for each 32 weights."""

_FP8_SHARE = 4 / (128 * 128)
"""Bytes of scales beside each weight in FP8, in blocks of 128 by 128."""

_GROUP = 128
"""Weights that share a scale of 2 bytes and a zero point, in GPTQ, AWQ and the like, by default."""

_HIDDEN_COPIES = 4
"""Hidden states that a layer holds at once: its input, their sum, a normalized copy, the result."""


@dataclass(frozen=True)
class Way:
    """One way to load a model.

    Attributes:
        name: of the way.
        dtype_bytes: of a number in its hidden states and logits.
        unit_bytes: of the weights of each unit of the shape, in the same order.
        exact: whether the bytes were counted; if not, they follow from rules of the format.
    """

    name: WayName
    dtype_bytes: int
    unit_bytes: tuple[int, ...]
    exact: bool = True

    @property
    def num_bytes(self) -> int:
        """All weights."""
        return sum(self.unit_bytes)


@dataclass(frozen=True)
class Batch:
    """What runs at once.

    Attributes:
        documents: in a batch.
        length: tokens of each, padding included.
    """

    documents: int
    length: int

    @property
    def num_tokens(self) -> int:
        """Tokens of a batch."""
        return self.documents * self.length


@dataclass(frozen=True)
class Work:
    """Bytes beside the weights, at the largest moment of a batch.

    Attributes:
        activations: hidden states, what one layer computes from them, and the attention mask.
        logits: chunks of logits, and what selects the entries of their rows.
    """

    activations: int
    logits: int


def ways(shape: ModelShape) -> list[Way]:
    """The ways to load a model, the usual ones first.

    A folder whose weights are quantized already, and a GGUF file, come as they are first; they
    may be dequantized, and are not quantized a second time.
    """
    plain = [
        Way("bfloat16", 2, tuple(2 * unit.parameters for unit in shape.units)),
        Way("float32", 4, tuple(4 * unit.parameters for unit in shape.units)),
    ]
    if shape.is_gguf or shape.quantization is not None:
        return [_as_it_is(shape), *plain]
    return [
        *plain,
        Way("8 bit", 2, tuple(map(_int8, shape.units))),
        Way("4 bit", 2, tuple(map(_nf4, shape.units))),
    ]


def _int8(unit: Unit) -> int:
    return unit.linear + _INT8_SCALE * unit.linear_rows + 2 * (unit.parameters - unit.linear)


def _nf4(unit: Unit) -> int:
    quantized = unit.linear // 2 + 4 * unit.linear // _NF4_BLOCK
    return quantized + 2 * (unit.parameters - unit.linear)


def _as_it_is(shape: ModelShape) -> Way:
    """Weights as they are stored: their bytes by the files, else by the rules of the format."""
    quantization = shape.quantization or {}
    by_rule = [stored_unit(unit, quantization) for unit in shape.units]
    if shape.stored_bytes is None:
        return Way("as it is", 2, tuple(map(round, by_rule)), exact=False)
    # The files say how many bytes there are, and the rules how they are divided.
    scale = shape.stored_bytes / sum(by_rule)
    return Way("as it is", 2, tuple(round(size * scale) for size in by_rule))


def stored_unit(unit: Unit, quantization: dict[str, Any]) -> float:
    """Bytes of a unit in a folder with this `quantization_config`; 2 a weight that has none.

    Args:
        unit: the weights.
        quantization: `quant_method` and its settings, as config.json has them.
    """
    method = str(quantization.get("quant_method", ""))
    each: float
    if method == "mxfp4":
        # Only the experts' matrices are in four bits.
        return _MXFP4 * unit.experts + 2 * (unit.parameters - unit.experts)
    if method in ("fp8", "fbgemm_fp8", "finegrained_fp8"):
        each = 1 + _FP8_SHARE
    elif method == "bitsandbytes":
        each = 0.5 + 4 / _NF4_BLOCK if quantization.get("load_in_4bit") else 1.0
    else:
        bits = quantization.get("bits", quantization.get("w_bit", 8 if not method else 4))
        group = quantization.get("group_size", _GROUP)
        known = type(bits) is int and 0 < bits <= 16
        width = bits if known else 16
        share = group if type(group) is int and group > 0 else _GROUP
        each = width / 8 + (2 + width / 8) / share
    matrices = unit.linear + unit.experts
    return each * matrices + 2 * (unit.parameters - matrices)


def batch_of(budget: int, length: int, documents: int | None) -> Batch:
    """The batch of the longest documents that a capture runs.

    Args:
        budget: tokens of a batch.
        length: tokens of the longest document.
        documents: of a batch, if it is set; else as many as fit the budget.
    """
    return Batch(documents or max(1, budget // length), length)


def work(
    shape: ModelShape,
    way: Way,
    batch: Batch,
    chunk_logits: int,
    selected_logits: int,
) -> Work:
    """What a batch needs beside the weights; nothing that a layer computes counts as freed.

    Args:
        shape: of the model.
        way: in which it is loaded.
        batch: what runs at once.
        chunk_logits: logits of a chunk.
        selected_logits: logits that are selected from together, on an accelerator; 0 where
            selection copies nothing.
    """
    width = max((unit.width for unit in shape.units), default=0)
    numbers = batch.num_tokens * (width + _HIDDEN_COPIES * shape.hidden_size)
    # One mask of booleans, and the same in the dtype, which attention kernels make of it.
    mask = batch.num_tokens * batch.length * (1 + way.dtype_bytes)
    positions = max(1, chunk_logits // (batch.documents * shape.vocab_size))
    # A chunk is still held while the next one is computed.
    chunk = min(positions, batch.length) * batch.documents * shape.vocab_size
    selected = min(selected_logits, chunk)
    return Work(
        activations=numbers * way.dtype_bytes + mask,
        logits=2 * chunk * way.dtype_bytes + selected * (way.dtype_bytes + 8),
    )


def gguf_work(shape: ModelShape, length: int, batch_rows: int) -> Work:
    """What llama.cpp needs: a cache of keys and values in 16 bits, and one batch in float32."""
    width = max((unit.width for unit in shape.units), default=0)
    numbers = batch_rows * (width + _HIDDEN_COPIES * shape.hidden_size)
    return Work(
        activations=2 * shape.kv_size * length + 4 * numbers,
        logits=4 * batch_rows * shape.vocab_size,
    )
