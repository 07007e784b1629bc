"""Hugging Face's Trainer on a fused dataset, with our loss.

    python examples/hf_trainer.py STORE FUSED MODEL_FOLDER OUTPUT_FOLDER [STEPS]

`remove_unused_columns=False` is needed: otherwise the Trainer removes the fused distributions from
every sample before it is collated, because they are no arguments of the model's `forward`. The
Trainer shuffles in its own order. Use `fusestore train` to resume a run at the exact sample.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import fusestore as fs


class FusionTrainer(Trainer):
    """A Trainer that minimizes `fusestore.losses.fusion_loss`."""

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of a collated batch, and the model's outputs if asked."""
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        loss = fs.losses.fusion_loss(outputs.logits, inputs, lm_weight=0.9)
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
