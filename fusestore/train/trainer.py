"""`train`: from a model and a fused dataset to a trained model folder.

Each step is a function of the plan and the step's number: its windows (`fusestore.data.order`), its
learning rate and λ (`fusestore.train.optimizer`) and the random state (`seed_step`). So an
interrupted and resumed run ends with the weights of an uninterrupted run.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fusestore.data.streaming.stream import Stream
from fusestore.errors import (
    AlreadyExistsError,
    FusestoreError,
    IncompatibleError,
    InvalidInputError,
)
from fusestore.models.model import Model
from fusestore.models.precision import PrecisionChoice, choose_precision
from fusestore.progress import Reporter, SilentReporter
from fusestore.storage.location import Location
from fusestore.store.artifact_files import FINGERPRINT_FILE, MANIFEST_FILE
from fusestore.store.result import StageResult
from fusestore.train.checkpoint import (
    TrainState,
    delete_checkpoint,
    restore_weights,
    resumed_state,
    stored_state,
)
from fusestore.train.distributed.collectives import any_process, by_main_process, lost_processes
from fusestore.train.distributed.launch import (
    complete_configuration,
    end_process_group_at_exit,
    make_accelerator,
)
from fusestore.train.division import Division, begun_division, divided_among
from fusestore.train.evaluator import Evaluation
from fusestore.train.guards import check_vocabulary
from fusestore.train.logs import check_log_folder, run_log
from fusestore.train.loop import TrainingLoop, TrainingProgress
from fusestore.train.made_from import made_from
from fusestore.train.manifest import TrainedModel, TrainingManifest, TrainingPlan
from fusestore.train.process_state import deterministic, stop_signals
from fusestore.train.settings import TrainSettings
from fusestore.train.step_batches import Trainable, windows_in_epoch
from fusestore.train.student.document_masking import check_document_masking
from fusestore.train.student.model_folder import load_trainable, publish_model
from fusestore.train.student.student import Student


def train(
    model: Model | str | os.PathLike[str],
    dataset: Trainable,
    settings: TrainSettings,
    output: Location,
    work_dir: Path,
    *,
    evaluation: Evaluation | None = None,
    progress: Callable[[TrainingProgress], None] | None = None,
    log_dir: Path | None = None,
    reporter: Reporter | None = None,
) -> StageResult[TrainedModel]:
    """Continue training a model on a fused dataset and publish it as a Hugging Face folder.

    A checkpoint of the same plan in `work_dir` is resumed, also by another number of processes (see
    `fusestore.train.division`); a finished `output` is returned as it is. Ctrl-C or SIGTERM ends
    the step (an evaluation at once), writes a checkpoint and raises KeyboardInterrupt; while the
    model is published, the signal waits. A second Ctrl-C stops at once.

    Args:
        model: the target: a model or what `Model.open` takes.
        dataset: its fused dataset. A stream is read in its own order; with `settings.seed` and
            `shuffle_span=None` that is the order of the map-style dataset.
        settings: of the run.
        output: the model folder to create; its `manifest.json` is written last.
        work_dir: local folder for the checkpoint, which the main process writes and reads; removed
            at the end of the run.
        evaluation: run before the first step, every `settings.eval_every` steps and at the end,
            in the main process; documents are scored in the run's precision.
        progress: called after every step in the main process.
        log_dir: local folder for TensorBoard logs, outside `output`; see `TensorBoardLog`.
        reporter: receives the precision that was settled, and the progress of evaluations.

    Raises:
        NotFoundError: there is no such model.
        InvalidInputError: the dataset is too small, `log_dir` lies in `output`, the model cannot be
            loaded, or `settings.result` is `best` without an evaluation of bits per byte.
        MissingDependencyError: a package of an extra is needed and not installed.
        AlreadyExistsError: `output` holds the model of another plan.
        FingerprintMismatchError: `work_dir` holds a checkpoint of another plan.
        IncompatibleError: the dataset has token ids that the model lacks, or samples that bias the
            objective, or the model or accelerate's configuration does not support the settings.
        NonFiniteError: the loss, its gradient or the weights are NaN or infinite; windows and
            documents are named, and the previous checkpoint is kept.
        DivergedError: the loss rose by more than `settings.loss_spike`; likewise.
        LostRankError: another process ended, or does not answer; likewise.
    """
    model = Model.open(model)
    reporter = reporter or SilentReporter()
    if log_dir is not None:
        check_log_folder(log_dir, output)
    if dataset.sampled:
        objective = settings.fusion_objective(min(settings.lm_weights))
        objective.check_samples(f"fused dataset {dataset.name}")
    accelerator = make_accelerator()
    with lost_processes(accelerator, lambda: "Start all processes again by the same command."):
        known = by_main_process(accelerator, lambda: _known(output, work_dir))
        _check_newest(accelerator, known.state, work_dir)
        lines = []
        if settings.precision == "auto":
            precision, reason = _settle_precision(accelerator, known.plan)
            settings = settings.model_copy(update={"precision": precision})
            lines.append(f"precision {precision} ({reason})")
        if settings.attend_within == "auto":
            reach, why = _settle_attention(model, dataset, settings, known.plan)
            settings = settings.model_copy(update={"attend_within": reach})
            lines += [] if why is None else [f"attention within each {reach}: {why}"]
        now = begun = Division.of(settings, accelerator.num_processes)
        if known.plan is not None:
            begun = begun_division(Division.of(known.plan.settings, known.plan.world_size), now)
        plan = _plan(model, dataset, begun.applied(settings), begun.world_size)
        finished = _finished(output, plan)
        if finished is not None:
            if accelerator.is_main_process:
                _clear_up(work_dir, plan)
            return StageResult(TrainedModel(output, finished), created=False)
        state = TrainState(plan=plan)
        if known.state is not None:
            state = resumed_state(known.state, plan, work_dir)
        if now.windows != begun.windows:
            now = divided_among(begun, now.world_size, output.name)
        if now != begun:
            lines.append(
                f"resumed by {now}; begun by {begun}: {begun.windows} windows a step, as before"
            )
        running = plan.model_copy(
            update={"settings": now.applied(plan.settings), "world_size": now.world_size}
        )
        complete_configuration(accelerator, running.settings)
        for line in lines if accelerator.is_main_process else []:
            reporter.line(f"{output.name}: {line}")
        with (
            deterministic(settings.seed),
            run_log(log_dir if accelerator.is_main_process else None, state) as log,
            stop_signals() as stops,
        ):
            trainable = load_trainable(model, running.settings)
            if state.step > 0:
                restore_weights(accelerator, work_dir, trainable)
            check_vocabulary(trainable, dataset, model.name)
            student = Student(trainable, running.settings, dataset.window_length)
            loop = TrainingLoop(
                accelerator,
                student,
                dataset,
                running,
                work_dir,
                stops,
                evaluation,
                progress,
                log,
                output.name,
                reporter,
            )
            trained = loop.run(state)
            if accelerator.is_main_process:
                _remove_equivalent(output, plan)
                files = publish_model(trained.weights, model, plan, output, work_dir / "model")
                manifest = TrainingManifest(
                    plan=plan,
                    result_step=trained.result_step,
                    num_tokens=trained.num_tokens,
                    loss_curve=trained.loss_curve,
                    evaluations=trained.evaluations,
                    files=files,
                    made_from=made_from(model, dataset),
                )
                manifest.save(output / "manifest.json")
                delete_checkpoint(work_dir)
            accelerator.wait_for_everyone()
    end_process_group_at_exit()
    manifest = TrainingManifest.load(output / "manifest.json")
    return StageResult(TrainedModel(output, manifest), created=True)


def _clear_up(work_dir: Path, plan: TrainingPlan) -> None:
    """Delete the checkpoint of a finished run that ended before it could."""
    with contextlib.suppress(FusestoreError):
        state = stored_state(work_dir)
        if state is not None and state.plan.same_result(plan):
            delete_checkpoint(work_dir)


class _Known(NamedTuple):
    """What there is of a run that is finished or was begun.

    Attributes:
        plan: its choices hold on every machine.
        state: of its checkpoint.
    """

    plan: TrainingPlan | None
    state: TrainState | None


def _known(output: Location, work_dir: Path) -> _Known:
    if (output / MANIFEST_FILE).exists():
        return _Known(TrainingManifest.load(output / MANIFEST_FILE).plan, None)
    state = stored_state(work_dir)
    return _Known(_begun(output) if state is None else state.plan, state)


def _check_newest(
    accelerator: Any,  # noqa: ANN401 - accelerate is untyped
    state: TrainState | None,
    work_dir: Path,
) -> None:
    """Check that the checkpoint of the main process is the newest of all machines.

    Raises:
        InvalidInputError: another machine has a newer one, which would be lost.
    """
    if accelerator.num_processes == 1:
        return
    own = None if accelerator.is_main_process else stored_state(work_dir)
    is_newer = own is not None and own.step > (0 if state is None else state.step)
    if any_process(accelerator, is_newer):
        found = "no checkpoint" if state is None else f"a checkpoint of step {state.step}"
        raise InvalidInputError(
            f"The main process (rank 0) finds {found} in {work_dir}, but a process of another "
            "machine finds a newer one. Start the machine that has it as node rank 0, give all a "
            "work folder that they share (--work-dir), or delete that folder there to start over."
        )


def _settle_attention(
    model: Model, dataset: Trainable, settings: TrainSettings, known: TrainingPlan | None
) -> tuple[Literal["auto", "window", "document"], str | None]:
    """What `attend_within` `auto` stands for in this run, and why, where that is worth a line."""
    if known is not None:
        return known.settings.attend_within, None
    if not dataset.whole_documents:
        return "window", None
    # Loaded once more for the run: what loading draws must not depend on how this was settled.
    with deterministic(settings.seed):
        trainable = load_trainable(model, settings)
        try:
            check_document_masking(trainable, min(settings.batch_size, 2))
        except IncompatibleError as error:
            return "window", f"documents of a window see those before them. {error}"
    return "document", "windows hold whole documents, and the model masks them from each other"


def _settle_precision(
    accelerator: Any,  # noqa: ANN401 - accelerate is untyped
    known: TrainingPlan | None,
) -> PrecisionChoice:
    """The precision that `auto` stands for in this run, the same in every process.

    A resumed run keeps its precision on every machine. A new run uses
    bfloat16 where the devices of all its processes have it.
    """
    if known is not None and known.settings.precision != "auto":
        return PrecisionChoice(known.settings.precision, "this run was begun with it")
    choice = choose_precision(str(accelerator.device))
    if any_process(accelerator, choice.value == "float32") and choice.value != "float32":
        return PrecisionChoice("float32", "another process has no bfloat16 in hardware")
    return choice


def _plan(
    model: Model, dataset: Trainable, settings: TrainSettings, world_size: int
) -> TrainingPlan:
    windows = windows_in_epoch(dataset)
    if windows < world_size:
        raise InvalidInputError(
            f"The dataset has {windows} windows for {world_size} processes: too few for one "
            "step. Use fewer processes or a smaller window_length."
        )
    steps_per_epoch = -(-windows // Division.of(settings, world_size).windows)
    return TrainingPlan(
        dataset_digest=dataset.digest,
        stream_order=_own_order(dataset, settings.seed),
        base_model_digest=model.digest,
        settings=settings,
        world_size=world_size,
        total_steps=settings.max_steps or settings.epochs * steps_per_epoch,
    )


def _own_order(dataset: Trainable, seed: int) -> dict[str, Any] | None:
    if isinstance(dataset, Stream) and not dataset.follows(seed):
        return dataset.order_identity
    return None


def _finished(output: Location, plan: TrainingPlan) -> TrainingManifest | None:
    manifest = None
    if (output / MANIFEST_FILE).exists():
        manifest = TrainingManifest.load(output / MANIFEST_FILE)
    # An interrupted publication leaves a fingerprint without a manifest.
    begun = _begun(output) if manifest is None else manifest.plan
    if begun is not None and not begun.same_result(plan):
        raise AlreadyExistsError(
            f"{output} already holds a model trained on other inputs or with other settings. "
            "Choose another name, or delete it first."
        )
    return manifest


def _begun(output: Location) -> TrainingPlan | None:
    file = output / FINGERPRINT_FILE
    return TrainingPlan.load(file) if file.exists() else None


def _remove_equivalent(output: Location, plan: TrainingPlan) -> None:
    """Remove the fingerprint of another plan with the same weights, so that it can be replaced."""
    begun = _begun(output)
    if begun is not None and begun != plan and begun.same_result(plan):
        (output / FINGERPRINT_FILE).delete()
