"""Lightning makes the plain loop's steps, with accumulation, validation and exact resume."""

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

import fusestore as fs
from fusestore.data import FusedDataset, StreamingLoader, WindowLoader
from fusestore.errors import InvalidInputError
from fusestore.integrations import FusionModule, StepLoader
from tests.helpers.plain_training import (
    batches_of,
    check_same_weights,
    load,
    mean_loss,
    step_windows,
    train_plainly,
)

pytestmark = pytest.mark.filterwarnings(
    # Lightning's advice.
    "ignore:.*does not have many workers",
    "ignore:You defined a `validation_step`",
    "ignore:Checkpoint directory",
)


class Descent(FusionModule):
    """With SGD in place of AdamW."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)


class Losses(Callback):
    """Losses of batches, as Lightning scales them for accumulation."""

    def __init__(self):
        self.found = []

    def on_train_batch_end(self, trainer, *_):
        self.found.append(float(trainer.callback_metrics["train_loss"]))


def trainer(folder, steps, *callbacks, **options):
    return lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=list(callbacks),
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False, **options},
    )


@pytest.mark.parametrize("accumulation", [1, 2])
def test_steps_are_those_of_a_plain_loop(model_path, dataset, held_out, tmp_path, accumulation):
    module = Descent(load(model_path), learning_rate=0.1)
    losses = Losses()
    loader = StepLoader(WindowLoader(dataset, 4 // accumulation, seed=3), accumulation)
    fitting = trainer(tmp_path, 8, losses, accumulate_grad_batches=accumulation)
    fitting.fit(module, loader, WindowLoader(held_out, 3, shuffle=False))
    groups = step_windows(dataset, 4, 8, seed=3)
    expected, weights = train_plainly(model_path, batches_of(dataset, groups))
    if accumulation == 1:
        assert losses.found == pytest.approx(expected, rel=1e-5)
    check_same_weights(module.model.state_dict(), weights, 1e-5)
    (measured,) = fitting.validate(module, WindowLoader(held_out, 3, shuffle=False), verbose=False)
    names = ("val_loss", "val_lm", "val_fused")
    assert [measured[name] for name in names] == pytest.approx(
        mean_loss(module.model, held_out), rel=1e-5
    )


def test_accumulation_needs_the_positions_of_a_step(model_path, dataset, tmp_path):
    module = Descent(load(model_path))
    with pytest.raises(InvalidInputError, match=r"accumulate_grad_batches=2.*StepLoader"):
        trainer(tmp_path, 1, accumulate_grad_batches=2).fit(module, WindowLoader(dataset, 2))


def test_a_stream_resumes_exactly(model_path, streamed, tmp_path):
    """In the second epoch, whose first steps are not repeated."""

    def fit(folder, steps, checkpoint=None):
        stream = fs.StreamingFusedDataset(streamed, seed=5, shuffle_span=6)
        loader = StepLoader(StreamingLoader(stream, 2), 2)
        module = FusionModule(load(model_path), learning_rate=1e-2)
        saving = ModelCheckpoint(dirpath=folder, every_n_train_steps=6, save_last=True)
        fitting = trainer(
            folder, steps, saving, accumulate_grad_batches=2, enable_checkpointing=True
        )
        fitting.fit(module, loader, ckpt_path=checkpoint)
        return module.model

    assert len(FusedDataset(streamed)) == 13
    whole = fit(tmp_path / "whole", 9)
    fit(tmp_path / "parts", 6)
    resumed = fit(tmp_path / "parts", 9, tmp_path / "parts/last.ckpt")
    check_same_weights(resumed.state_dict(), whole.state_dict(), 0.0)
