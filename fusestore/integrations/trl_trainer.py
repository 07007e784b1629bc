"""TRL's `SFTTrainer` on fused datasets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from fusestore.errors import InvalidInputError
from fusestore.integrations.fusion_mixin import FusionTrainerMixin

_NO_EFFECT = {
    "packing": False,
    "padding_free": False,
    "assistant_only_loss": False,
    "loss_type": "nll",
    "label_smoothing_factor": 0.0,
}
"""Settings of TRL's own data and loss, and their defaults."""


class FusionSFTTrainer(FusionTrainerMixin, SFTTrainer):
    """A `trl.SFTTrainer` on a fused dataset, also with `peft_config`; see `FusionTrainerMixin`.

    A fused dataset holds token ids and labels, so TRL tokenizes, packs and truncates nothing.

    ```python
    trainer = FusionSFTTrainer(
        "HuggingFaceTB/SmolLM2-135M",
        SFTConfig(output_dir="student"),
        train_dataset=fs.open_fused("my.store", "demo"),
        peft_config=LoraConfig(),
    )
    trainer.train()
    ```
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - TRL's and transformers' are untyped
        args: SFTConfig | None = None,
        data_collator: Callable[[Any], Any] | None = None,
        train_dataset: Any = None,  # noqa: ANN401
        eval_dataset: Any = None,  # noqa: ANN401
        *others: Any,  # noqa: ANN401
        **options: Any,  # noqa: ANN401
    ) -> None:
        """Make the trainer; arguments and errors as for `FusionTrainerMixin`.

        Raises:
            InvalidInputError: also: no fused dataset, arguments that are no `SFTConfig`, or
                settings of TRL's own data or loss.
        """
        if not hasattr(train_dataset, "top_k"):
            raise InvalidInputError(
                f"train_dataset is a {type(train_dataset).__name__}; expected a fused dataset. "
                "Give fusestore.open_fused(store, name) or a stream, or use trl.SFTTrainer."
            )
        args = SFTConfig() if args is None else args
        if not isinstance(args, SFTConfig):
            raise InvalidInputError(
                f"args is a {type(args).__name__}; expected a trl.SFTConfig, which has the "
                "arguments of transformers.TrainingArguments too."
            )
        _check_arguments(args)
        kwargs: Any = args.dataset_kwargs or {}
        args.dataset_kwargs = {**kwargs, "skip_prepare_dataset": True}
        # TRL accepts only datasets of the package `datasets`, and looks at their first sample. It
        # gets one of one token; the batches come from the fused datasets.
        first = Dataset.from_dict({"input_ids": [[0]], "labels": [[0]]})
        evaluated: Any = None
        if isinstance(eval_dataset, Mapping):
            evaluated = dict.fromkeys(eval_dataset, first)
        elif eval_dataset is not None:
            evaluated = first
        super().__init__(model, args, data_collator, first, evaluated, *others, **options)
        self.train_dataset = train_dataset
        self.eval_dataset = eval_dataset
        self._check_datasets()


def _check_arguments(args: SFTConfig) -> None:
    for name, expected in _NO_EFFECT.items():
        value = getattr(args, name, expected)
        if value != expected:
            raise InvalidInputError(
                f"{name}={value!r}: the windows of a fused dataset are packed and labeled, and the "
                f"loss is fusestore's, so this has no effect. Leave it at {expected!r}; packing "
                "and labels are settings of the recipe and the corpus."
            )
