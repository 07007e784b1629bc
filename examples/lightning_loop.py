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
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import AutoModelForCausalLM

import fusestore as fs


class FusionModule(lightning.LightningModule):
    """A causal language model that minimizes `fusestore.losses.fusion_loss`."""

    def __init__(self, model_folder: str) -> None:
        super().__init__()
        model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
        self.model = model.train()

    def training_step(self, batch: dict[str, torch.Tensor], _number: int) -> torch.Tensor:
        """The loss of a collated batch, in nats."""
        logits = self.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).logits
        loss = fs.losses.fusion_loss(logits, batch)
        print(f"step {self.global_step + 1}: {loss.item():.4f}", flush=True)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW; its state is in Lightning's checkpoints too."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main(store: str, fused: str, model_folder: str, output: str, steps: str = "20") -> None:
    """Train or resume, and save; prints the loss of each step in nats."""
    lightning.seed_everything(0, verbose=False)
    stream = fs.StreamingFusedDataset(f"{store}/fused/{fused}", seed=0)
    module = FusionModule(model_folder)
    trainer = lightning.Trainer(
        max_steps=int(steps),
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        devices=1,
        callbacks=[ModelCheckpoint(dirpath=output, every_n_train_steps=5, save_last=True)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    last = Path(output) / "last.ckpt"
    trainer.fit(
        module,
        fs.data.StreamingLoader(stream, batch_size=4),
        ckpt_path=last if last.exists() else None,
    )
    module.model.save_pretrained(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
