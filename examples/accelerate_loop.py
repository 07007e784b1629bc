"""accelerate with any number of processes: each process takes its share of every step's windows.

    torchrun --nproc-per-node 2 examples/accelerate_loop.py STORE FUSED MODEL_FOLDER OUTPUT [STEPS]

The windows of a step are the same for any number of processes that divides the batch: `BatchOrder`
assigns them to ranks, and every rank makes the same number of steps. Losses and gradients are means
over the positions of a step, so they do not depend on the number of processes. Do not pass the
loader to `prepare`, which would shard it a second time; a `StreamingLoader` may be passed.
"""

from __future__ import annotations

import sys

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

import fusestore as fs
from fusestore.data import BatchOrder, collate

WINDOWS_PER_STEP = 4


def main(store: str, fused: str, model_folder: str, output: str, steps: str = "20") -> None:
    """Train and save; the main process prints the mean loss of each step in nats."""
    accelerator = Accelerator()
    set_seed(0)
    dataset = fs.open_fused(store, fused)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    step = epoch = 0
    while step < int(steps):
        order = BatchOrder(
            len(dataset),
            WINDOWS_PER_STEP // accelerator.num_processes,
            seed=0,
            epoch=epoch,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        for batch in DataLoader(dataset, batch_sampler=order, collate_fn=collate):
            batch = {name: values.to(accelerator.device) for name, values in batch.items()}
            logits = model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).logits
            # The mean over ranks, because their gradients are averaged.
            positions = fs.losses.count_positions([batch]).to(accelerator.device)
            positions = accelerator.reduce(positions, "mean")
            loss = fs.losses.fusion_loss(logits, batch, num_positions=positions)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            mean = accelerator.reduce(loss.detach(), "mean").item()
            accelerator.print(f"step {step}: {mean:.4f}", flush=True)
            if step == int(steps):
                break
        epoch += 1
    accelerator.unwrap_model(model).save_pretrained(
        output, is_main_process=accelerator.is_main_process
    )
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
