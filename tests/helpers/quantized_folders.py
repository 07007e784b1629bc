"""Model folders with quantized weights, number by number, and the weights they stand for."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The 16 values of a 4-bit float with 2 bits of exponent."""

BLOCK = 16
"""Rows and columns of an FP8 weight that share a scale."""


def as_fp8(folder: Path, to: Path):
    """Write a model with FP8 weights in blocks; the dequantized weights by name, in float64."""
    values = {}

    def quantize(name, weight):
        blocks = weight.unfold(0, BLOCK, BLOCK).unfold(1, BLOCK, BLOCK)
        scale = blocks.abs().amax((2, 3)) / 448
        wide = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
        narrow = (weight / wide).to(torch.float8_e4m3fn)
        values[name] = narrow.double() * wide.double()
        return {name: narrow, f"{name}_scale_inv": scale}

    config = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": ["lm_head"],
    }
    _write(folder, to, config, quantize)
    return values


def as_int8(folder: Path, to: Path):
    """Write a model in the format of compressed-tensors: int8, a scale for each row."""
    values = {}

    def quantize(name, weight):
        scale = weight.abs().amax(1, keepdim=True) / 127
        narrow = (weight / scale).round().to(torch.int8)
        values[name] = narrow.double() * scale.double()
        return {name: narrow, name.replace("weight", "weight_scale"): scale}

    eight_bits = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**eight_bits, "strategy": "channel"},
        "input_activations": {**eight_bits, "strategy": "token", "dynamic": True},
    }
    config = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }
    _write(folder, to, config, quantize)
    return values


def as_mxfp4(folder: Path, to: Path):
    """Write a gpt-oss model with experts in MXFP4; the dequantized experts, in float64."""
    values = {}
    generator = torch.Generator().manual_seed(0)

    def quantize(name, weight):
        # The file has outputs before inputs: two numbers a byte, 32 numbers share a power of 2.
        experts, width, outputs = weight.shape
        shape = (experts, outputs, width // 32, 16)
        blocks = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        scales = torch.randint(120, 124, shape[:-1], generator=generator, dtype=torch.uint8)
        table = torch.tensor(FP4, dtype=torch.float64)
        numbers = torch.stack([table[(blocks & 15).long()], table[(blocks >> 4).long()]], -1)
        numbers = numbers.flatten(-2) * 2.0 ** (scales.double() - 127)[..., None]
        values[name] = numbers.flatten(-2).transpose(1, 2)
        return {f"{name}_blocks": blocks, f"{name}_scales": scales}

    _write(folder, to, {"quant_method": "mxfp4"}, quantize, ("gate_up_proj", "down_proj"))
    return values


def with_method(folder: Path, to: Path, **config):
    """A copy of a plain model whose config.json says that it is quantized."""
    return _write(folder, to, config, lambda name, weight: {name: weight})


def remove_tensor(folder: Path, *endings: str):
    """Remove one tensor whose name has one of these endings; the name."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if name.endswith(endings))
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    return name


def _write(folder, to, config, quantize, endings=("proj.weight",)):
    shutil.copytree(folder, to)
    content = json.loads((to / "config.json").read_bytes())
    (to / "config.json").write_text(json.dumps(content | {"quantization_config": config}))
    tensors = {}
    for name, weight in load_file(to / "model.safetensors").items():
        tensors |= quantize(name, weight) if name.endswith(endings) else {name: weight}
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to
