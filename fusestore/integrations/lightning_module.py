"""A causal language model and its objective as a Lightning module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning
import torch
from torch import Tensor

from fusestore.data.collation import model_inputs
from fusestore.errors import InvalidInputError
from fusestore.integrations.held_out_sums import HeldOutSums
from fusestore.losses.logit_loss import fusion_terms
from fusestore.losses.objective import FusionObjective
from fusestore.losses.positions import count_positions
from fusestore.losses.row_losses import FusionTerms


class FusionModule(lightning.LightningModule):
    """Trains a causal language model on batches of a fused dataset.

    Batches come from `fusestore.data.StreamingLoader`, whose state Lightning stores in its
    checkpoints, or from `fusestore.data.WindowLoader`. With `accumulate_grad_batches`, put a
    `StepLoader` of the same number around the loader. Each rank reads its own windows: give the
    trainer `use_distributed_sampler=False`.

    `train_loss` of each batch, and `val_loss`, `val_lm` and `val_fused` of each validation, are
    logged in nats. Validation losses are means over all positions.

    ```python
    stream = fs.StreamingFusedDataset("my.store/fused/demo", seed=0)
    module = FusionModule(AutoModelForCausalLM.from_pretrained("student"), learning_rate=1e-4)
    lightning.Trainer(max_steps=1000).fit(module, fs.data.StreamingLoader(stream, batch_size=8))
    module.model.save_pretrained("trained")
    ```

    Attributes:
        model: the model.
        objective: what is minimized.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - transformers is untyped
        objective: FusionObjective | None = None,
        learning_rate: float = 1e-4,
    ) -> None:
        """Wrap a model.

        Args:
            model: a causal language model of transformers.
            objective: what is minimized; by default `FusionObjective()`.
            learning_rate: of AdamW; override `configure_optimizers` for another optimizer.
        """
        super().__init__()
        self.model = model
        self.objective = FusionObjective() if objective is None else objective
        self.learning_rate = learning_rate
        self._sums = HeldOutSums()

    def on_fit_start(self) -> None:
        """Put the model into training mode: `from_pretrained` returns it in evaluation mode."""
        self.model.train()

    def training_step(self, batch: Mapping[str, Tensor], _number: int) -> Tensor:
        """The loss of a batch, scaled so that the optimizer step has a mean over its positions.

        Raises:
            InvalidInputError: `accumulate_grad_batches` without a `StepLoader`.
        """
        accumulation = int(self.trainer.accumulate_grad_batches)
        positions = batch.get("num_positions")
        if positions is None:
            if accumulation != 1:
                raise InvalidInputError(
                    f"accumulate_grad_batches={accumulation}: Lightning would take the mean of the "
                    "batches' means, in which positions of short windows weigh more. Give the "
                    f"trainer fusestore.integrations.StepLoader(loader, {accumulation})."
                )
            positions = count_positions([batch])
        # The mean over ranks, because their gradients are averaged.
        counts = self.trainer.strategy.reduce(positions.to(self.device), reduce_op="mean")
        loss = self._terms(batch, counts).loss
        # Lightning divides by the number of batches.
        loss = loss * accumulation
        self.log("train_loss", loss.detach(), prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Begin a new mean."""
        self._sums = HeldOutSums()

    def validation_step(self, batch: Mapping[str, Tensor], _number: int) -> None:
        """Add the losses of a batch."""
        self._sums.add(self._terms(batch, None), batch)

    def on_validation_epoch_end(self) -> None:
        """Log the held-out loss and its terms."""
        strategy = self.trainer.strategy
        total = self._sums.reduced(
            lambda sums: strategy.reduce(sums.to(self.device), reduce_op="sum").cpu()
        )
        for name, value in total.means(self.objective).items():
            self.log(f"val_{name}", value, prog_bar=name == "loss")

    def _terms(self, batch: Mapping[str, Tensor], counts: Tensor | None) -> FusionTerms:
        logits = self.model(**model_inputs(batch)).logits
        return fusion_terms(logits, batch, self.objective, num_positions=counts)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; its state is in Lightning's checkpoints too."""
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate)
