"""accelerate with any number of processes: each process takes its share of every step's windows.

    torchrun --nproc-per-node 2 examples/accelerate_loop.py STORE FUSED MODEL_FOLDER OUTPUT [STEPS]

The windows of a step are the same for any number of processes that divides the batch, and losses
and gradients are means over the positions of a step. To accumulate gradients, give
`fusion_backward` several batches.
"""

from __future__ import annotations

import sys
from itertools import chain, islice, repeat

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import AutoModelForCausalLM

import fusestore as fs
from fusestore.integrations import fusion_backward

WINDOWS_PER_STEP = 4


def main(store: str, fused: str, model_folder: str, output: str, steps: str = "20") -> None:
    """Train and save; the main process prints the mean loss of each step in nats."""
    accelerator = Accelerator()
    set_seed(0)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dataset = fs.open_fused(store, fused)
    loader = fs.data.WindowLoader(dataset, WINDOWS_PER_STEP // accelerator.num_processes, seed=0)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for step, batch in enumerate(islice(chain.from_iterable(repeat(loader)), int(steps)), 1):
        loss = fusion_backward(accelerator, model, [batch])
        optimizer.step()
        optimizer.zero_grad()
        accelerator.print(f"step {step}: {loss:.4f}", flush=True)
    accelerator.unwrap_model(model).save_pretrained(
        output, is_main_process=accelerator.is_main_process
    )
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
