"""The training loop: plain PyTorch on accelerate, deterministic and resumable bit for bit.

Everything a step does follows from the plan and the step's number: its windows
(`fusestore.data.order`), its learning rate (`settings.learning_rate_at`) and the random state,
which checkpoints keep. So an interrupted and resumed run ends with the weights of an
uninterrupted one.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fusestore.capture.models import model_digest, output_width
from fusestore.corpus.tokens import TokenTable
from fusestore.data.collate import collate
from fusestore.data.dataset import FusedDataset
from fusestore.data.order import BatchOrder, batches_per_epoch
from fusestore.errors import (
    AlreadyExistsError,
    IncompatibleError,
    InvalidInputError,
    NonFiniteError,
)
from fusestore.storage.shards import FileRecord
from fusestore.storage.urls import Location
from fusestore.train.checkpoint import (
    TrainState,
    delete_checkpoint,
    load_state,
    restore,
    save_checkpoint,
)
from fusestore.train.evaluate import autocast, bits_per_byte
from fusestore.train.losses import FusionTerms, fusion_terms
from fusestore.train.manifest import EvaluationPoint, LossPoint, TrainingManifest, TrainingPlan
from fusestore.train.model_io import check_model_folder, load_trainable, publish_model
from fusestore.train.settings import TrainSettings, learning_rate_at

Evaluation = Callable[[Any], Mapping[str, float]] | TokenTable
"""A function from the model to metrics, or held-out documents to score in bits per byte."""


class TrainingProgress(NamedTuple):
    """What the progress callback is told after every optimizer step.

    Attributes:
        step: steps done.
        total_steps: of the run.
        num_tokens: target tokens of this step, over all processes.
        point: the step's losses.
    """

    step: int
    total_steps: int
    num_tokens: int
    point: LossPoint


class TrainingResult(NamedTuple):
    """Where the trained model is, and what its manifest says."""

    location: Location
    manifest: TrainingManifest


def train(
    model_path: Path,
    dataset: FusedDataset,
    settings: TrainSettings,
    output: Location,
    work_dir: Path,
    *,
    evaluation: Evaluation | None = None,
    progress: Callable[[TrainingProgress], None] | None = None,
) -> TrainingResult:
    """Continue training a model on a fused dataset and publish it as a Hugging Face folder.

    A checkpoint in `work_dir` of the same plan is resumed; so is a finished `output`, which is
    returned as it is. Ctrl-C (or SIGTERM) ends the step, keeps a checkpoint and raises
    KeyboardInterrupt; a second one stops at once.

    Args:
        model_path: local Hugging Face folder of the target.
        dataset: its fused dataset.
        settings: of the run.
        output: the model folder to make; its `manifest.json` comes last.
        work_dir: local folder for the checkpoint; removed when all is done.
        evaluation: run before the first step, every `settings.eval_every` steps and at the end,
            in the main process.
        progress: called after every step in the main process.

    Raises:
        NotFoundError: `model_path` holds no model.
        AlreadyExistsError: `output` holds the model of another plan.
        FingerprintMismatchError: `work_dir` holds a checkpoint of another plan.
        IncompatibleError: the dataset has token ids that the model lacks, or samples where the
            temperature is not 1, or the model cannot be trained here.
        NonFiniteError: the loss or its gradient is NaN or infinite; windows and documents are
            named, and the checkpoint before is kept.
    """
    from accelerate import Accelerator

    check_model_folder(model_path)
    _check_temperature(settings, dataset)
    accelerator = Accelerator(mixed_precision="no")
    if accelerator.distributed_type.value in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        raise IncompatibleError(
            f"Training under {accelerator.distributed_type.value} is not supported: optimizer "
            "states in pieces cannot be kept in checkpoints. Use plain data parallelism."
        )
    plan = _plan(model_path, dataset, settings, accelerator.num_processes)
    finished = _finished(output, plan)
    if finished is not None:
        return TrainingResult(output, finished)
    state = load_state(work_dir, plan) or TrainState(plan=plan)
    model = load_trainable(model_path, settings)
    _check_vocabulary(model, dataset, model_path)
    with _deterministic(settings.seed):
        run = _Run(accelerator, model, dataset, plan, work_dir, evaluation, progress)
        state = run.to_the_end(state)
        if accelerator.is_main_process:
            files = publish_model(
                run.plain_model, model_path, output, work_dir / "model", settings.save_dtype
            )
            _manifest(state, files).save(output / "manifest.json")
            delete_checkpoint(work_dir)
        accelerator.wait_for_everyone()
    return TrainingResult(output, TrainingManifest.load(output / "manifest.json"))


def _plan(
    model_path: Path, dataset: FusedDataset, settings: TrainSettings, world_size: int
) -> TrainingPlan:
    batches = batches_per_epoch(len(dataset), settings.batch_size, world_size)
    steps_per_epoch = -(-batches // settings.gradient_accumulation)
    if steps_per_epoch == 0:
        raise InvalidInputError(
            f"The dataset has {len(dataset)} windows for {world_size} processes: too few for one "
            "step. Use fewer processes or a smaller window_length."
        )
    return TrainingPlan(
        dataset_digest=dataset.digest,
        base_model_digest=model_digest(model_path),
        settings=settings,
        world_size=world_size,
        total_steps=settings.max_steps or settings.epochs * steps_per_epoch,
    )


def _finished(output: Location, plan: TrainingPlan) -> TrainingManifest | None:
    if not (output / "manifest.json").exists():
        return None
    manifest = TrainingManifest.load(output / "manifest.json")
    if manifest.plan != plan:
        raise AlreadyExistsError(
            f"{output} already holds a model trained on other inputs or with other settings. "
            "Choose another name, or delete it first."
        )
    return manifest


def _check_temperature(settings: TrainSettings, dataset: FusedDataset) -> None:
    if settings.objective == "fuse" and dataset.sampled and settings.temperature != 1.0:
        raise IncompatibleError(
            f"temperature is {settings.temperature}, but fused dataset {dataset.folder.name} has "
            "samples of its sources' distributions, which estimate them at temperature 1 alone: a "
            "power of an estimate is no estimate of the power. Use temperature 1, or a fused "
            "dataset of top-k caches."
        )


def _check_vocabulary(model: Any, dataset: FusedDataset, model_path: Path) -> None:  # noqa: ANN401
    width = output_width(model)
    if dataset.vocab_size <= width:
        return
    largest = dataset.largest_token_id()
    if largest >= width:
        raise IncompatibleError(
            f"Fused dataset {dataset.folder.name} has token id {largest}, but the model in "
            f"{model_path} has {width} ids: they do not belong together. Train the target that "
            "the dataset was fused for."
        )


def _manifest(state: TrainState, files: dict[str, FileRecord]) -> TrainingManifest:
    return TrainingManifest(
        plan=state.plan,
        num_tokens=state.num_tokens,
        loss_curve=state.loss_curve,
        evaluations=state.evaluations,
        files=files,
    )


class _Run:
    """A model, its optimizer and its data, on their way to the last step."""

    def __init__(
        self,
        accelerator: Any,  # noqa: ANN401 - accelerate is untyped
        model: Any,  # noqa: ANN401
        dataset: FusedDataset,
        plan: TrainingPlan,
        work_dir: Path,
        evaluation: Evaluation | None,
        progress: Callable[[TrainingProgress], None] | None,
    ) -> None:
        self.accelerator = accelerator
        self.plain_model = model
        self.dataset = dataset
        self.plan = plan
        self.settings = plan.settings
        self.work_dir = work_dir
        self.evaluation = evaluation
        self.progress = progress
        self.parameter_names, plain_optimizer = _adamw(model, self.settings)
        self.plain_optimizer = plain_optimizer
        self.model, self.optimizer = accelerator.prepare(model, plain_optimizer)

    def to_the_end(self, state: TrainState) -> TrainState:
        """Make all steps that are missing."""
        if state.step > 0:
            restore(self.work_dir, self.plain_model, self.plain_optimizer, self.parameter_names)
        total = self.plan.total_steps
        # Curves grow in lists and are frozen into the state when it is kept.
        points, evaluations = list(state.loss_curve), list(state.evaluations)
        num_tokens = state.num_tokens

        def frozen(step: int) -> TrainState:
            return state.model_copy(
                update={
                    "step": step,
                    "num_tokens": num_tokens,
                    "loss_curve": tuple(points),
                    "evaluations": tuple(evaluations),
                }
            )

        if state.step == 0 and self.evaluation is not None:
            evaluations.append(EvaluationPoint(step=0, metrics=self._evaluate()))
        with _stop_signals() as stop_asked, contextlib.closing(self._steps(state.step)) as steps:
            for step in range(state.step + 1, total + 1):
                point, step_tokens = self._step(step, next(steps))
                points.append(point)
                num_tokens += step_tokens
                if self.progress is not None and self.accelerator.is_main_process:
                    self.progress(TrainingProgress(step, total, step_tokens, point))
                if self._evaluates_after(step):
                    evaluations.append(EvaluationPoint(step=step, metrics=self._evaluate()))
                stop = self._any_process(stop_asked())
                every = self.settings.checkpoint_every
                if step < total and (stop or (every is not None and step % every == 0)):
                    self._keep(frozen(step))
                if stop and step < total:
                    raise KeyboardInterrupt(
                        f"Stopped after step {step} of {total}; the same command goes on from "
                        f"the checkpoint in {self.work_dir}."
                    )
        return frozen(total)

    def _steps(self, steps_done: int) -> Generator[list[dict[str, Tensor]], None, None]:
        """The batches of each optimizer step from `steps_done` on, epoch after epoch."""
        settings, world_size = self.settings, self.plan.world_size
        accumulation = settings.gradient_accumulation
        batches = batches_per_epoch(len(self.dataset), settings.batch_size, world_size)
        epoch, steps_into_epoch = divmod(steps_done, -(-batches // accumulation))
        while True:
            order = BatchOrder(
                len(self.dataset),
                settings.batch_size,
                seed=settings.seed,
                epoch=epoch,
                first_batch=steps_into_epoch * accumulation,
                rank=self.accelerator.process_index,
                world_size=world_size,
            )
            loader = DataLoader(
                self.dataset,
                batch_sampler=order,
                collate_fn=collate,
                num_workers=settings.num_workers,
                # A forked worker can hang once the parent has used Polars or s3fs.
                multiprocessing_context="forkserver" if settings.num_workers else None,
                # Without its own generator the loader would draw from the global one.
                generator=torch.Generator(),
            )
            group: list[dict[str, Tensor]] = []
            for number, batch in enumerate(loader, 1):
                group.append(batch)
                if len(group) == accumulation or number == len(order):
                    yield group
                    group = []
            epoch, steps_into_epoch = epoch + 1, 0

    def _step(self, step: int, batches: list[dict[str, Tensor]]) -> tuple[LossPoint, int]:
        """One optimizer step over the batches; returns its losses and its number of tokens."""
        learning_rate = learning_rate_at(self.settings, step - 1, self.plan.total_steps)
        for group in self.plain_optimizer.param_groups:
            group["lr"] = learning_rate
        sums = torch.zeros(4, dtype=torch.float64)
        for number, batch in enumerate(batches, 1):
            syncs = number == len(batches)
            with contextlib.nullcontext() if syncs else self.accelerator.no_sync(self.model):
                terms = self._forward(batch)
                values = torch.stack([terms.loss.detach(), terms.lm, terms.fused]).double().cpu()
                self._check_finite(step, batches[number - 1 : number], values[:1])
                self.accelerator.backward(terms.loss / len(batches))
            sums[:3] += values / len(batches)
            sums[3] += int(batch["attention_mask"].sum())
        grad_norm = None
        if self.settings.max_grad_norm is not None:
            norm = self.accelerator.clip_grad_norm_(
                self.model.parameters(), self.settings.max_grad_norm
            )
            self._check_finite(step, batches, norm.detach().reshape(1).cpu())
            grad_norm = float(norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        totals = self._sum_over_processes(sums)
        loss, lm, fused = (float(value) / self.plan.world_size for value in totals[:3])
        point = LossPoint(
            step=step,
            loss=loss,
            lm=lm,
            fused=fused if self._fuses else None,
            learning_rate=learning_rate,
            grad_norm=grad_norm,
        )
        return point, int(totals[3])

    @property
    def _fuses(self) -> bool:
        return self.settings.objective == "fuse" and self.settings.lm_weight < 1.0

    def _forward(self, batch: Mapping[str, Tensor]) -> FusionTerms:
        settings, device = self.settings, self.accelerator.device
        moved = {
            name: tensor.to(device)
            for name, tensor in batch.items()
            if self._fuses or not name.startswith("fused_")
        }
        with autocast(device, settings.precision):
            logits = self.model(
                input_ids=moved["input_ids"],
                attention_mask=_mask_if_needed(moved["attention_mask"]),
                use_cache=False,
            ).logits
        return fusion_terms(
            logits,
            moved,
            settings.lm_weight if self._fuses else 1.0,
            settings.temperature,
            settings.tail,
        )

    def _check_finite(self, step: int, batches: list[dict[str, Tensor]], values: Tensor) -> None:
        bad = not bool(torch.isfinite(values).all())
        if not self._any_process(bad):
            return
        windows = sorted({int(w) for batch in batches for w in batch["window"]})
        documents = sorted({d for window in windows for d in self.dataset.documents(window)})
        raise NonFiniteError(
            f"Step {step}: the loss or its gradient is {float(values[0])} for windows {windows} "
            f"(documents {documents}) of {self.dataset.folder.name}. No weights were changed by "
            "it. Lower the learning rate, use precision 'no', or look at these documents' "
            "distributions with `fusestore inspect`."
        )

    def _any_process(self, here: bool) -> bool:
        if self.plan.world_size == 1:
            return here
        flag = torch.tensor([float(here)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum").item() > 0)

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        if self.plan.world_size == 1:
            return values
        total: Tensor = self.accelerator.reduce(values.to(self.accelerator.device), "sum")
        return total.cpu()

    def _evaluates_after(self, step: int) -> bool:
        every = self.settings.eval_every
        due = every is not None and step % every == 0
        return self.evaluation is not None and (due or step == self.plan.total_steps)

    def _evaluate(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        if self.accelerator.is_main_process:
            if isinstance(self.evaluation, TokenTable):
                held_out = bits_per_byte(
                    self.plain_model, self.evaluation, precision=self.settings.precision
                )
                metrics = {
                    "bits_per_byte": held_out.bits_per_byte,
                    "nats_per_token": held_out.nats_per_token,
                }
            elif self.evaluation is not None:
                self.plain_model.eval()
                with torch.no_grad():
                    found = self.evaluation(self.plain_model)
                self.plain_model.train()
                metrics = {name: float(value) for name, value in found.items()}
        self.accelerator.wait_for_everyone()
        return metrics

    def _keep(self, state: TrainState) -> None:
        if self.accelerator.is_main_process:
            save_checkpoint(
                self.work_dir, state, self.plain_model, self.plain_optimizer, self.parameter_names
            )
        self.accelerator.wait_for_everyone()


def _adamw(
    model: torch.nn.Module, settings: TrainSettings
) -> tuple[list[str], torch.optim.Optimizer]:
    """AdamW over all trainable parameters, and their names in its order."""
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    decayed = [(name, value) for name, value in named if value.dim() >= 2]
    others = [(name, value) for name, value in named if value.dim() < 2]
    groups = [
        {"params": [value for _, value in decayed], "weight_decay": settings.weight_decay},
        {"params": [value for _, value in others], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=settings.betas,
        fused=True,
    )
    return [name for name, _ in decayed + others], optimizer


def _mask_if_needed(attention_mask: Tensor) -> Tensor | None:
    """None where nothing is padded: attention is faster without a mask."""
    return None if bool(attention_mask.all()) else attention_mask


@contextlib.contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Seeded and deterministic inside; the process's own settings and random state after."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices):
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """A function that tells whether SIGINT or SIGTERM came; a second SIGINT raises at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def note(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
