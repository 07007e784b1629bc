"""A short run of the tiny model, as most tests of the trainer want it."""

import json
import os
import signal

import numpy as np
import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fusestore.storage.location import Location
from fusestore.tokenizers.token_table import TokenTable
from fusestore.train import LoraSettings, TrainSettings, train

SETTINGS = TrainSettings(
    lm_weight=0.5,
    learning_rate=1e-2,
    batch_size=3,
    gradient_accumulation=2,
    epochs=2,
    precision="float32",
    seed=5,
)


LORA = LoraSettings(rank=4, alpha=8.0, dropout=0.1)


def lora_settings(lora=LORA, **fields):
    """`SETTINGS` with adapters."""
    return SETTINGS.model_copy(update={"lora": lora, **fields})


def run(model_path, dataset, settings, folder, **options):
    output = Location.parse(folder / "model")
    return train(model_path, dataset, settings, output, folder / "work", **options).artifact


def model_files(result):
    """Records of a trained model's files; its fingerprint, which says how it was made, is apart."""
    files = result.manifest.files
    assert "fingerprint.json" in files
    return {name: record for name, record in files.items() if name != "fingerprint.json"}


def signal_after(*steps, number=signal.SIGINT):
    """A `progress` that sends this process a signal after each of these steps."""

    def progress(report):
        if report.step in steps:
            os.kill(os.getpid(), number)

    return progress


def folder_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def held_out():
    rng = np.random.default_rng(1)
    lengths = [5, 1, 12, 0, 9]
    total = sum(lengths)
    return TokenTable(
        rng.integers(0, 100, total).astype(np.int32),
        np.concatenate([np.arange(1, n + 1, dtype=np.int32) * 3 for n in lengths]),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def manifest(folder):
    return json.loads((folder / "model" / "manifest.json").read_bytes())


def check_same_course(folder, other):
    """Of two runs of two processes: equal but for rounding."""
    found, expected = manifest(folder), manifest(other)
    assert found["plan"] == expected["plan"]
    assert found["num_tokens"] == expected["num_tokens"]
    for one, two in zip(found["loss_curve"], expected["loss_curve"], strict=True):
        assert one == pytest.approx(two, rel=1e-5)
    for one, two in zip(found["evaluations"], expected["evaluations"], strict=True):
        assert one["metrics"] == pytest.approx(two["metrics"], rel=1e-5)
    weights, others = (load_file(path / "model/model.safetensors") for path in (folder, other))
    assert weights.keys() == others.keys()
    assert all((weights[name] - others[name]).abs().max() < 1e-4 for name in others)
    AutoModelForCausalLM.from_pretrained(folder / "model")
