"""transformers' `Trainer` on fused datasets."""

from __future__ import annotations

from transformers import Trainer

from fusestore.integrations.fusion_mixin import FusionTrainerMixin


class FusionTrainer(FusionTrainerMixin, Trainer):
    """A `transformers.Trainer` on a fused dataset; see `FusionTrainerMixin`.

    ```python
    trainer = FusionTrainer(model, arguments, train_dataset=fs.open_fused("my.store", "demo"))
    trainer.train()
    ```
    """
