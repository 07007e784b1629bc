"""axolotl on fused datasets, as a plugin of its configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from axolotl.common.datasets import TrainDatasetMeta
from axolotl.core.trainers.base import AxolotlTrainer
from axolotl.integrations.base import BasePlugin
from torch import Tensor

from fusestore.data.collation import collate
from fusestore.data.dataset import open_fused
from fusestore.data.streaming.streaming_dataset import StreamingFusedDataset
from fusestore.errors import InvalidInputError
from fusestore.integrations.axolotl_settings import FusedTraining
from fusestore.integrations.fusion_mixin import FusionTrainerMixin
from fusestore.storage.location import Location

_NO_EFFECT = ("sample_packing", "eval_sample_packing", "batch_flattening", "curriculum_sampling")
_OTHER_DATA = ("test_datasets", "pretraining_dataset", "val_set_size", "rl", "streaming")


class FusestorePlugin(BasePlugin):  # type: ignore[misc]
    """Trains on a fused dataset with the objective of the section `fusestore`.

    ```yaml
    base_model: HuggingFaceTB/SmolLM2-135M
    plugins: [fusestore.integrations.FusestorePlugin]
    fusestore: {store: my.store, fused: demo, evaluate: demo-held-out, lm_weight: 0.5}
    ```

    See `FusedTraining` for the section, and `FusionTrainerMixin` for order and loss. axolotl's
    `datasets` must be left out: the windows of a fused dataset are tokenized, packed and labeled.
    """

    def get_input_args(self) -> str:
        """The section `fusestore`."""
        return "fusestore.integrations.axolotl_settings.FusestoreArgs"

    def register(self, cfg: Any) -> None:  # noqa: ANN401 - axolotl is untyped
        """Check the configuration before axolotl does.

        Raises:
            InvalidInputError: no section `fusestore`, or settings of axolotl's own data.
        """
        section = cfg.get("fusestore")
        if not isinstance(section, Mapping):
            raise InvalidInputError(
                f"The configuration has fusestore: {section!r}; expected a section with store and "
                "fused: the store, and the name of the fused dataset."
            )
        for name in ("datasets", *_OTHER_DATA, *_NO_EFFECT):
            if cfg.get(name):
                raise InvalidInputError(
                    f"{name}: {cfg[name]!r} has no effect, because the windows come from the fused "
                    f"dataset, packed and labeled. Remove {name}."
                )
        # axolotl demands datasets of its own. They are not read: `load_datasets` gives ours.
        named = [{"path": str(section.get("store")), "type": "fusestore", "split": "train"}]
        cfg["datasets"] = named
        if section.get("evaluate") is not None:
            cfg["test_datasets"] = named

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> TrainDatasetMeta:  # noqa: ANN401
        """Open the fused datasets."""
        settings = settings_of(cfg)
        seed = 42 if cfg.seed is None else int(cfg.seed)
        train: Any
        if settings.stream:
            source = Location.parse(settings.store) / "fused" / settings.fused
            train = StreamingFusedDataset(source, seed=seed)
            num_windows = train.num_windows
        else:
            train = open_fused(settings.store, settings.fused)
            num_windows = len(train)
        evaluated = None
        if settings.evaluate is not None:
            evaluated = open_fused(settings.store, settings.evaluate)
        steps = cfg.max_steps or math.ceil(num_windows * cfg.num_epochs / cfg.batch_size)
        return TrainDatasetMeta(train, evaluated, int(steps))

    def get_trainer_cls(self, cfg: Any) -> type[AxolotlTrainer]:  # noqa: ANN401
        """A trainer with the objective of the section."""
        settings = settings_of(cfg)

        class FusionAxolotlTrainer(FusionTrainerMixin, AxolotlTrainer):  # type: ignore[misc]
            """axolotl's trainer with the section's objective."""

            def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
                super().__init__(
                    *args,
                    objective=settings.objective,
                    document_masking=settings.document_masking,
                    **options,
                )

        return FusionAxolotlTrainer

    def get_collator_cls_and_kwargs(
        self,
        cfg: Any,  # noqa: ANN401
        is_eval: bool = False,
    ) -> tuple[Callable[..., Any], dict[str, Any]]:
        """What makes batches."""
        return _collator, {"document_masking": settings_of(cfg).document_masking}


def _collator(
    _tokenizer: Any,  # noqa: ANN401
    *,
    document_masking: bool,
    **_options: Any,  # noqa: ANN401
) -> Callable[[Sequence[Mapping[str, Tensor]]], dict[str, Tensor]]:
    """The collator, called like the classes that axolotl has for this."""
    return partial(collate, document_masking=document_masking)


def settings_of(cfg: Any) -> FusedTraining:  # noqa: ANN401
    """The checked section of a configuration."""
    return FusedTraining.model_validate(dict(cfg["fusestore"]))
