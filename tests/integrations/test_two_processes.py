"""Two processes make the steps of one: every window once, means over the positions of both."""

import json

import pytest

import fusestore as fs
from tests.helpers.plain_training import batches_of, load, mean_loss, step_windows, train_plainly
from tests.helpers.started_ranks import start_ranks

SCRIPT = """
import json, sys
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, TrainingArguments
import fusestore as fs
from fusestore.integrations import FusionTrainer, fusion_backward

model_folder, mapped, other, streamed, output = sys.argv[1:]
held_out = fs.data.FusedDataset(other)

def load():
    return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)

def of_trainer(dataset):
    seen = []

    class Seeing(FusionTrainer):
        def training_step(self, model, inputs, *rest):
            seen.append(inputs["window"].tolist())
            return super().training_step(model, inputs, *rest)

    trainer = Seeing(
        load(),
        TrainingArguments(
            output_dir=output, max_steps=7, per_device_train_batch_size=1,
            gradient_accumulation_steps=2, per_device_eval_batch_size=2, report_to=[],
            save_strategy="no", use_cpu=True, disable_tqdm=True, logging_steps=1, optim="sgd",
            learning_rate=0.1, lr_scheduler_type="constant", max_grad_norm=0.0, seed=3,
            eval_strategy="steps", eval_steps=7,
        ),
        train_dataset=dataset,
        eval_dataset=held_out,
    )
    trainer.train()
    history = trainer.state.log_history
    return {
        "windows": seen,
        "losses": [entry["loss"] for entry in history if "loss" in entry],
        "held out": [entry["eval_loss"] for entry in history if "eval_loss" in entry],
        "weights": sum(float(value.double().sum()) for value in trainer.model.parameters()),
    }

def of_loop(dataset):
    accelerator = Accelerator(cpu=True)
    model = load().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = fs.data.WindowLoader(dataset, 1, seed=3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    losses = []
    for _ in range(2):
        batches = list(loader)
        for start in range(0, len(batches), 2):
            losses.append(fusion_backward(accelerator, model, batches[start : start + 2]))
            optimizer.step()
            optimizer.zero_grad()
    return {"losses": losses}

told = {
    "mapped": of_trainer(fs.data.FusedDataset(mapped)),
    "streamed": of_trainer(fs.StreamingFusedDataset(streamed, seed=5, shuffle_span=6)),
    "loop": of_loop(fs.data.FusedDataset(mapped)),
}
every = [None] * 2
torch.distributed.all_gather_object(every, told)
if torch.distributed.get_rank() == 0:
    print("TOLD " + json.dumps(every))
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def told(model_path, dataset, held_out, streamed, tmp_path_factory):
    """What both ranks report."""
    folder = tmp_path_factory.mktemp("ranks")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    paths = [model_path, dataset.folder, held_out.folder, streamed, folder / "out"]
    processes = start_ranks([script, *paths], ACCELERATE_USE_CPU="true")
    answers = [process.communicate(timeout=300) for process in processes]
    assert all(process.returncode == 0 for process in processes), answers
    return json.loads(answers[0][0].splitlines()[-1].removeprefix("TOLD "))


def of_both(ranks):
    """Windows of each batch of both ranks, without padding."""
    pairs = zip(*(rank["windows"] for rank in ranks), strict=True)
    return [sorted(window for part in pair for window in part if window >= 0) for pair in pairs]


@pytest.mark.slow
def test_a_map_style_dataset_is_read_once(told, model_path, dataset):
    """Of 13 windows `BatchOrder` leaves out one an epoch, for two ranks."""
    ranks = [each["mapped"] for each in told]
    # Two windows a batch of both ranks, two batches a step; 12 windows are 3 steps.
    groups = [group for group in step_windows(dataset, 4, 16, seed=3) if len(group) == 4][:7]
    halves = [sorted(group[start : start + 2]) for group in groups for start in (0, 2)]
    assert of_both(ranks) == halves
    expected, _ = train_plainly(model_path, batches_of(dataset, groups))
    for rank in ranks:
        assert rank["weights"] == pytest.approx(ranks[0]["weights"], abs=0.0)
    assert ranks[0]["losses"] == pytest.approx(expected, rel=1e-5)
    assert [each["loop"]["losses"] for each in told] == [ranks_loop(told)] * 2
    assert ranks_loop(told) == pytest.approx(expected[:6], rel=1e-5)


def ranks_loop(told):
    return told[0]["loop"]["losses"]


@pytest.mark.slow
def test_a_stream_is_read_once_with_padding_at_the_end(told, model_path, streamed):
    ranks = [each["streamed"] for each in told]
    order = fs.StreamingFusedDataset(streamed, seed=5, shuffle_span=6).order
    groups = []
    for epoch in range(2):
        windows = order.windows(epoch).tolist()
        groups += [windows[start : start + 4] for start in range(0, 13, 4)]
    halves = [sorted(group[start : start + 2]) for group in groups[:7] for start in (0, 2)]
    # The padded step of an epoch has one window, in one batch.
    assert [half for half in of_both(ranks) if half] == [half for half in halves if half]
    batches = batches_of(fs.data.FusedDataset(streamed), groups[:7])
    expected, _ = train_plainly(model_path, batches)
    assert ranks[0]["losses"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_the_held_out_loss_is_that_of_one_process(told, model_path, dataset, held_out):
    groups = [group for group in step_windows(dataset, 4, 16, seed=3) if len(group) == 4][:7]
    _, weights = train_plainly(model_path, batches_of(dataset, groups))
    model = load(model_path)
    model.load_state_dict(weights)
    for each in told:
        assert each["mapped"]["held out"] == pytest.approx(
            [mean_loss(model, held_out)[0]], rel=1e-5
        )
