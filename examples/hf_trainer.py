"""Hugging Face's Trainer on a fused dataset, with our loss.

    python examples/hf_trainer.py STORE FUSED MODEL_FOLDER OUTPUT_FOLDER [STEPS]

Every argument of the Trainer works: evaluation, checkpoints, accumulation, several processes. For
a stream, give `fs.StreamingFusedDataset(...)` in place of `fs.open_fused(...)`.
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForCausalLM, TrainingArguments

import fusestore as fs
from fusestore.integrations import FusionTrainer


def main(store: str, fused: str, model_folder: str, output: str, steps: str = "20") -> None:
    """Train and save; the Trainer prints the losses."""
    trainer = FusionTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32),
        args=TrainingArguments(
            output_dir=output,
            max_steps=int(steps),
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            logging_steps=1,
        ),
        train_dataset=fs.open_fused(store, fused),
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(*sys.argv[1:])
