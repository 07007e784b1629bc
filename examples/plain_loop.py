"""A plain PyTorch loop over a fused dataset.

    python examples/plain_loop.py STORE FUSED MODEL_FOLDER OUTPUT_FOLDER [STEPS]

The seed determines the order of windows, and so the result. To resume in the middle of an epoch,
give `BatchOrder` the argument `first_batch`.
"""

from __future__ import annotations

import sys

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

import fusestore as fs
from fusestore.data import BatchOrder, collate


def main(store: str, fused: str, model_folder: str, output: str, steps: str = "20") -> None:
    """Train and save; prints the loss of each step in nats."""
    torch.manual_seed(0)
    dataset = fs.open_fused(store, fused)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step = epoch = 0
    while step < int(steps):
        order = BatchOrder(len(dataset), 4, seed=0, epoch=epoch)
        for batch in DataLoader(dataset, batch_sampler=order, collate_fn=collate):
            logits = model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).logits
            loss = fs.losses.fusion_loss(logits, batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            print(f"step {step}: {loss.item():.4f}", flush=True)
            if step == int(steps):
                break
        epoch += 1
    model.save_pretrained(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
