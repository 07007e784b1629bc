"""What makes a trainer derived from transformers' `Trainer` train on fused datasets.

The trainers' own extension points are used, and nothing is patched: `get_train_dataloader` and
`get_eval_dataloader` give batches, `get_batch_samples` counts the positions of an optimizer step,
`compute_loss` is the objective, and `evaluation_loop` the held-out loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from fusestore.data.collation import collate, model_inputs
from fusestore.data.dataset import FusedDataset
from fusestore.data.mixture import FusedMixture
from fusestore.data.streaming.stream import Stream
from fusestore.data.window_loader import WindowLoader
from fusestore.errors import InvalidInputError
from fusestore.integrations.held_out_sums import HeldOutSums
from fusestore.losses.logit_loss import fusion_terms
from fusestore.losses.objective import FusionObjective
from fusestore.losses.positions import count_positions
from fusestore.losses.row_losses import FusionTerms
from fusestore.train.distributed.collectives import sum_over_processes
from fusestore.train.guards import check_vocabulary
from fusestore.train.student.document_masking import check_document_masking

_FUSED = (FusedDataset, FusedMixture, Stream)


class FusionTrainerMixin:
    """Put it before a subclass of `transformers.Trainer` in the list of bases.

    - Datasets are a `FusedDataset`, a `FusedMixture` or a stream, for training and for evaluation.
      Each process reads its own windows. The order of a map-style dataset is that of
      `fusestore train` at the seed `data_seed`, else `seed`; a stream has its own. With another
      `train_sampling_strategy`, or with `dataloader_drop_last`, the order of a map-style dataset
      is the trainer's.
    - The loss is a mean over the positions of an optimizer step, over accumulated batches and all
      processes. It equals the loss of one large batch.
    - `eval_loss` is a mean over all positions of the dataset, each counted once; `eval_lm` and
      `eval_fused` are its two terms, in nats.
    - A resumed run skips the windows that were trained on without reading them.

    `remove_unused_columns` is set to False: the fused distributions are no arguments of the model.

    Attributes:
        fusion_objective: what is minimized.
    """

    # The loss is divided by the positions of all batches of a step.
    loss_is_scaled_for_ga: Any = True

    args: Any
    accelerator: Any
    model: Any
    train_dataset: Any
    eval_dataset: Any
    data_collator: Any
    _train_batch_size: int
    _train_loader: WindowLoader | None = None

    def __init__(
        self,
        model: Any = None,  # noqa: ANN401 - transformers is untyped
        args: Any = None,  # noqa: ANN401
        data_collator: Callable[[Any], Any] | None = None,
        *others: Any,  # noqa: ANN401 - the trainer's own
        objective: FusionObjective | None = None,
        document_masking: bool = False,
        **options: Any,  # noqa: ANN401
    ) -> None:
        """Make the trainer.

        Args:
            model: as for the trainer.
            args: as for the trainer.
            data_collator: makes a batch of samples; by default `fusestore.data.collate`.
            others: further arguments of the trainer.
            objective: what is minimized; by default `FusionObjective()`.
            document_masking: whether attention stays within each document of a window.
            options: further arguments of the trainer, by name.

        Raises:
            IncompatibleError: the model lacks token ids of a dataset or does not support document
                masking, or the objective would be biased on a dataset's samples.
            InvalidInputError: tensor, context or sequence parallelism.
        """
        self.fusion_objective = FusionObjective() if objective is None else objective
        if data_collator is None:
            data_collator = partial(collate, document_masking=document_masking)
        self._sums = HeldOutSums()
        super().__init__(model, args, data_collator, *others, **options)  # type: ignore[call-arg]
        # Otherwise the distributions are removed from every sample before it is collated.
        self.args.remove_unused_columns = False
        # Before transformers 5.19, the loss of a model that does not is divided by the batches.
        self.model_accepts_loss_kwargs = True
        self.add_callback(_OrderOfEpoch(self))  # type: ignore[attr-defined]
        self._check_parallelism()
        if document_masking:
            check_document_masking(self.model)
        self._check_datasets()

    def _check_parallelism(self) -> None:
        config = getattr(self.accelerator, "parallelism_config", None)
        for name in ("tp", "cp", "sp"):
            size = getattr(config, f"{name}_size", 1) or 1
            if size > 1:
                raise InvalidInputError(
                    f"{name}_size={size}: the loss needs whole windows, and each process reads its "
                    "own. Use data parallelism: DDP, FSDP or DeepSpeed."
                )

    def _check_datasets(self) -> None:
        evaluated = self.eval_dataset
        datasets = list(evaluated.values()) if isinstance(evaluated, Mapping) else [evaluated]
        for dataset in [self.train_dataset, *datasets]:
            self._check_dataset(dataset)

    def _check_dataset(self, dataset: Any) -> None:  # noqa: ANN401 - any dataset
        if isinstance(dataset, _FUSED):
            name = getattr(self.model.config, "name_or_path", "") or type(self.model).__name__
            check_vocabulary(self.model, dataset, name)
            if dataset.sampled:
                self.fusion_objective.check_samples(f"fused dataset {dataset.name}")

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This process's batches, epoch after epoch."""
        dataset = self.train_dataset
        in_our_order = isinstance(dataset, Stream) or (
            isinstance(dataset, _FUSED)
            and getattr(self.args, "train_sampling_strategy", "random") == "random"
            and not self.args.dataloader_drop_last
        )
        if not in_our_order:
            loader: DataLoader[Any] = super().get_train_dataloader()  # type: ignore[misc]
            return loader
        self._train_loader = self._loader(dataset, self._train_batch_size, shuffle=True)
        return self._train_loader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:  # noqa: ANN401
        """This process's batches for one evaluation."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = self.eval_dataset[dataset]
        if not isinstance(dataset, _FUSED):
            loader: DataLoader[Any] = super().get_eval_dataloader(eval_dataset)  # type: ignore[misc]
            return loader
        self._check_dataset(dataset)
        return self._loader(dataset, self.args.eval_batch_size, shuffle=False)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:  # noqa: ANN401
        """This process's batches for `predict`."""
        return self.get_eval_dataloader(test_dataset)

    def _loader(self, dataset: Any, batch_size: int, *, shuffle: bool) -> WindowLoader:  # noqa: ANN401
        arguments = self.args
        workers = arguments.dataloader_num_workers
        options: dict[str, Any] = {}
        if workers > 0:
            options["persistent_workers"] = arguments.dataloader_persistent_workers
            options["prefetch_factor"] = arguments.dataloader_prefetch_factor
            # Older versions lack it.
            method = getattr(arguments, "dataloader_multiprocessing_context", None)
            options["multiprocessing_context"] = method
        return WindowLoader(
            dataset,
            batch_size,
            seed=arguments.seed if arguments.data_seed is None else arguments.data_seed,
            shuffle=shuffle,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            num_workers=workers,
            collate_fn=self.data_collator,
            pin_memory=arguments.dataloader_pin_memory and torch.cuda.is_available(),
            **options,
        )

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:  # noqa: ANN401
        """The batches of an optimizer step, and the positions that its loss is a mean over."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        counts = sum_over_processes(self.accelerator, count_positions(batches))
        # The mean of the processes' counts, because their gradients are averaged.
        return batches, counts / self.accelerator.num_processes

    def compute_loss(
        self,
        model: Any,  # noqa: ANN401
        inputs: Any,  # noqa: ANN401
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """The loss of a collated batch, and the model's outputs if asked.

        Args:
            model: the model.
            inputs: a batch of `fusestore.data.collate`.
            return_outputs: whether to return the outputs too.
            num_items_in_batch: float64 [2], of `get_batch_samples`; None: those of the batch.
        """
        terms, outputs = self._terms(model, inputs, num_items_in_batch)
        return (terms.loss, outputs) if return_outputs else terms.loss

    def _terms(
        self,
        model: Any,  # noqa: ANN401
        inputs: Any,  # noqa: ANN401
        num_positions: Tensor | None = None,
    ) -> tuple[FusionTerms, Any]:
        outputs = model(**model_inputs(inputs))
        terms = fusion_terms(
            outputs.logits, inputs, self.fusion_objective, num_positions=num_positions
        )
        return terms, outputs

    def prediction_step(
        self,
        model: Any,  # noqa: ANN401
        inputs: Any,  # noqa: ANN401
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The loss of a batch, and unless only that is asked for, logits and `next_ids`."""
        inputs = self._prepare_inputs(inputs)  # type: ignore[attr-defined]
        with torch.no_grad(), self.compute_loss_context_manager():  # type: ignore[attr-defined]
            terms, outputs = self._terms(model, inputs)
        self._sums.add(terms, inputs)
        if prediction_loss_only:
            return terms.loss, None, None
        return terms.loss, outputs.logits, inputs["next_ids"]

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:  # noqa: ANN401
        """Evaluate; the loss is a mean over positions, and not over batches."""
        self._sums = HeldOutSums()
        result = super().evaluation_loop(  # type: ignore[misc]
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        sums = self._sums.reduced(partial(sum_over_processes, self.accelerator))
        for name, value in sums.means(self.fusion_objective).items():
            result.metrics[f"{metric_key_prefix}_{name}"] = value
        return result


class _OrderOfEpoch(TrainerCallback):
    """Tells the order which epoch begins.

    Before transformers 5.17 the trainer does not, where it resumes within an epoch.
    """

    def __init__(self, trainer: FusionTrainerMixin) -> None:
        self._trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:  # noqa: ANN401
        del args, control, others
        if self._trainer._train_loader is not None:
            self._trainer._train_loader.set_epoch(int(state.epoch or 0))
