"""TRL's SFTTrainer on a fused dataset, with our loss and LoRA.

    python examples/trl_sft.py STORE FUSED MODEL_FOLDER OUTPUT_FOLDER [STEPS]

The output is an adapter. Leave out `peft_config` to train all weights.
"""

from __future__ import annotations

import sys

import torch
from peft import LoraConfig
from trl import SFTConfig

import fusestore as fs
from fusestore.integrations import FusionSFTTrainer


def main(store: str, fused: str, model_folder: str, output: str, steps: str = "20") -> None:
    """Train and save; the trainer prints the losses."""
    trainer = FusionSFTTrainer(
        model=model_folder,
        args=SFTConfig(
            output_dir=output,
            max_steps=int(steps),
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            logging_steps=1,
            bf16=torch.cuda.is_available(),
        ),
        train_dataset=fs.open_fused(store, fused),
        peft_config=LoraConfig(r=16, target_modules="all-linear"),
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(*sys.argv[1:])
