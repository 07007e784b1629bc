"""Lightning on a stream of a fused dataset, with our loss; an interrupted run resumes exactly.

    python examples/lightning_loop.py STORE FUSED MODEL_FOLDER OUTPUT_FOLDER [STEPS]

Lightning stores the state of a loader with `state_dict` in its checkpoints, and `StreamingLoader`
has that method. Run the example again with more steps, and it continues after the last trained
window, also in the middle of an epoch. With several devices each rank reads its share of the
stream, so Lightning has no sampler to replace.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from transformers import AutoModelForCausalLM

import fusestore as fs
from fusestore.integrations import FusionModule


class PrintLosses(Callback):
    """Prints the loss of each step in nats."""

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """See Lightning's `Callback`."""
        print(f"step {trainer.global_step}: {trainer.callback_metrics['train_loss']:.4f}")


def main(store: str, fused: str, model_folder: str, output: str, steps: str = "20") -> None:
    """Train or resume, and save."""
    lightning.seed_everything(0, verbose=False)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    module = FusionModule(model, learning_rate=1e-3)
    stream = fs.StreamingFusedDataset(f"{store}/fused/{fused}", seed=0)
    last = Path(output) / "last.ckpt"
    trainer = lightning.Trainer(
        max_steps=int(steps),
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        devices=1,
        callbacks=[
            PrintLosses(),
            ModelCheckpoint(dirpath=output, every_n_train_steps=5, save_last=True),
        ],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = fs.data.StreamingLoader(stream, batch_size=4)
    trainer.fit(module, loader, ckpt_path=last if last.exists() else None)
    module.model.save_pretrained(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
