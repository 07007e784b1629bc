"""`train`: from a model folder and a fused dataset to a trained model folder.

Everything a step does follows from the plan and the step's number: its windows
(`fusestore.data.order`), its learning rate and λ (`fusestore.train.schedules`) and the random
state, which checkpoints keep. So an interrupted and resumed run ends with the weights of an
uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fusestore.data.streaming.stream import Stream
from fusestore.errors import AlreadyExistsError, InvalidInputError
from fusestore.models.loading import model_digest
from fusestore.models.precision import PrecisionChoice, choose_precision
from fusestore.progress import Reporter, SilentReporter
from fusestore.storage.location import Location
from fusestore.train.checkpoint import (
    TrainState,
    delete_checkpoint,
    load_state,
    restore_weights,
    stored_state,
)
from fusestore.train.distributed.launch import make_accelerator
from fusestore.train.distributed.processes import any_process
from fusestore.train.evaluation import Evaluation
from fusestore.train.guards import check_vocabulary
from fusestore.train.logs import check_log_folder, run_log
from fusestore.train.loop import TrainingLoop, TrainingProgress
from fusestore.train.manifest import TrainingManifest, TrainingPlan
from fusestore.train.model_io import check_model_folder, load_trainable, publish_model
from fusestore.train.settings import TrainSettings
from fusestore.train.step_batches import Trainable, batches_in_epoch
from fusestore.train.student import Student
from fusestore.train.surroundings import deterministic, stop_signals


class TrainingResult(NamedTuple):
    """Where the trained model is, and what its manifest says."""

    location: Location
    manifest: TrainingManifest


def train(
    model_path: Path,
    dataset: Trainable,
    settings: TrainSettings,
    output: Location,
    work_dir: Path,
    *,
    evaluation: Evaluation | None = None,
    progress: Callable[[TrainingProgress], None] | None = None,
    log_dir: Path | None = None,
    reporter: Reporter | None = None,
) -> TrainingResult:
    """Continue training a model on a fused dataset and publish it as a Hugging Face folder.

    A checkpoint in `work_dir` of the same plan is resumed; so is a finished `output`, which is
    returned as it is. Ctrl-C or SIGTERM ends the step (an evaluation at once), keeps a checkpoint
    and raises KeyboardInterrupt; while the model is published, it waits for that. A second Ctrl-C
    stops at once.

    Args:
        model_path: local Hugging Face folder of the target.
        dataset: its fused dataset; of a stream, windows come in the stream's own order. One of
            `settings.seed` that mixes all windows (`shuffle_span=None`) is trained on exactly as
            the map-style dataset is.
        settings: of the run.
        output: the model folder to make; its `manifest.json` comes last.
        work_dir: local folder for the checkpoint; removed when all is done.
        evaluation: run before the first step, every `settings.eval_every` steps and at the end,
            in the main process; documents are scored in the run's precision.
        progress: called after every step in the main process.
        log_dir: local folder for TensorBoard logs, outside of `output`; see `TensorBoardLog`.
        reporter: receives the precision that was settled, and the progress of evaluations.

    Raises:
        NotFoundError: `model_path` holds no model.
        InvalidInputError: the dataset is too small, `log_dir` lies in `output`, or the best model
            is wanted and nothing is evaluated that tells it.
        MissingDependencyError: a package of an extra is needed and not installed.
        AlreadyExistsError: `output` holds the model of another plan.
        FingerprintMismatchError: `work_dir` holds a checkpoint of another plan.
        IncompatibleError: the dataset has token ids that the model lacks, or samples where the
            objective would be biased, or the model cannot be trained here.
        NonFiniteError: the loss, its gradient or the weights are NaN or infinite; windows and
            documents are named, and the checkpoint before is kept.
        DivergedError: the loss rose by more than `settings.loss_spike`; likewise.
    """
    check_model_folder(model_path)
    if log_dir is not None:
        check_log_folder(log_dir, output)
    if dataset.sampled:
        objective = settings.fusion_objective(min(settings.lm_weights))
        objective.check_samples(f"fused dataset {dataset.name}")
    reporter = reporter or SilentReporter()
    accelerator = make_accelerator(settings)
    reason = None
    if settings.precision == "auto":
        precision, reason = _settle_precision(accelerator, output, work_dir)
        settings = settings.model_copy(update={"precision": precision})
    plan = _plan(model_path, dataset, settings, accelerator.num_processes)
    finished = _finished(output, plan)
    if finished is not None:
        return TrainingResult(output, finished)
    if reason is not None and accelerator.is_main_process:
        reporter.line(f"{output.name}: precision {settings.precision} ({reason})")
    state = load_state(work_dir, plan) or TrainState(plan=plan)
    with (
        deterministic(settings.seed),
        run_log(log_dir if accelerator.is_main_process else None, state) as log,
        stop_signals() as stops,
    ):
        model = load_trainable(model_path, settings)
        if state.step > 0:
            restore_weights(work_dir, model)
        check_vocabulary(model, dataset, model_path)
        student = Student(model, settings, dataset.window_length)
        loop = TrainingLoop(
            accelerator,
            student,
            dataset,
            plan,
            work_dir,
            stops,
            evaluation,
            progress,
            log,
            output.name,
            reporter,
        )
        trained = loop.to_the_end(state)
        if accelerator.is_main_process:
            files = publish_model(trained.weights, model_path, settings, output, work_dir / "model")
            manifest = TrainingManifest(
                plan=plan,
                result_step=trained.result_step,
                num_tokens=trained.num_tokens,
                loss_curve=trained.loss_curve,
                evaluations=trained.evaluations,
                files=files,
            )
            manifest.save(output / "manifest.json")
            delete_checkpoint(work_dir)
        accelerator.wait_for_everyone()
    return TrainingResult(output, TrainingManifest.load(output / "manifest.json"))


def _settle_precision(
    accelerator: Any,  # noqa: ANN401 - accelerate is untyped
    output: Location,
    work_dir: Path,
) -> PrecisionChoice:
    """What `auto` stands for in this run, the same in every process.

    A run that was begun keeps its precision on whatever machine it goes on. A new one computes in
    bfloat16 where the devices of all its processes do.
    """
    plan = None
    if (output / "manifest.json").exists():
        plan = TrainingManifest.load(output / "manifest.json").plan
    elif (state := stored_state(work_dir)) is not None:
        plan = state.plan
    if plan is not None and plan.settings.precision != "auto":
        return PrecisionChoice(plan.settings.precision, "this run was begun with it")
    choice = choose_precision(str(accelerator.device))
    if any_process(accelerator, choice.value == "float32") and choice.value != "float32":
        return PrecisionChoice("float32", "another process has no bfloat16 in hardware")
    return choice


def _plan(
    model_path: Path, dataset: Trainable, settings: TrainSettings, world_size: int
) -> TrainingPlan:
    batches = batches_in_epoch(dataset, settings.batch_size, world_size)
    steps_per_epoch = -(-batches // settings.gradient_accumulation)
    if steps_per_epoch == 0:
        raise InvalidInputError(
            f"The dataset has {len(dataset)} windows for {world_size} processes: too few for one "
            "step. Use fewer processes or a smaller window_length."
        )
    return TrainingPlan(
        dataset_digest=dataset.digest,
        stream_order=_own_order(dataset, settings.seed),
        base_model_digest=model_digest(model_path),
        settings=settings,
        world_size=world_size,
        total_steps=settings.max_steps or settings.epochs * steps_per_epoch,
    )


def _own_order(dataset: Trainable, seed: int) -> dict[str, Any] | None:
    if isinstance(dataset, Stream) and not dataset.follows(seed):
        return dataset.order_identity
    return None


def _finished(output: Location, plan: TrainingPlan) -> TrainingManifest | None:
    if not (output / "manifest.json").exists():
        return None
    manifest = TrainingManifest.load(output / "manifest.json")
    if not manifest.plan.leads_where(plan):
        raise AlreadyExistsError(
            f"{output} already holds a model trained on other inputs or with other settings. "
            "Choose another name, or delete it first."
        )
    return manifest
