"""Hugging Face's Trainer on a fused dataset, with our loss.

    python examples/hf_trainer.py STORE FUSED MODEL_FOLDER OUTPUT_FOLDER [STEPS]

`remove_unused_columns=False` is needed: otherwise the Trainer removes the fused distributions from
every sample before it is collated, because they are no arguments of the model's `forward`. The
Trainer shuffles in its own order. Use `fusestore train` to resume a run at the exact sample.

The loss is a mean over the positions of a step, also with gradient accumulation and several
processes. To train on a stream, return a `fusestore.data.StreamingLoader` from
`get_train_dataloader`.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import fusestore as fs


class FusionTrainer(Trainer):
    """A Trainer that minimizes `fusestore.losses.fusion_loss`."""

    # The loss is divided by the positions of all batches of a step.
    loss_is_scaled_for_ga = True

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The batches of a step, and the positions that its loss is a mean over."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        positions = fs.losses.count_positions(batches).to(device)
        # The mean over processes, because their gradients are averaged.
        return batches, self.accelerator.reduce(positions, "mean")

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of a collated batch, and the model's outputs if asked."""
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        loss = fs.losses.fusion_loss(outputs.logits, inputs, num_positions=num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


def main(store: str, fused: str, model_folder: str, output: str, steps: str = "20") -> None:
    """Train and save; the Trainer prints the losses."""
    arguments = TrainingArguments(
        output_dir=output,
        max_steps=int(steps),
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        seed=0,
    )
    trainer = FusionTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32),
        args=arguments,
        train_dataset=fs.open_fused(store, fused),
        data_collator=fs.data.collate,
    )
    trainer.train()
    trainer.save_model(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
