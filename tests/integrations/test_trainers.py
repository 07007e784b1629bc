"""transformers' Trainer, TRL's SFTTrainer and accelerate make the plain loop's steps."""

from itertools import islice

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import TrainingArguments
from trl import SFTConfig

import fusestore as fs
from fusestore.errors import IncompatibleError, InvalidInputError
from fusestore.integrations import FusionSFTTrainer, FusionTrainer, fusion_backward
from fusestore.losses import FusionObjective
from tests.helpers.plain_training import (
    batches_of,
    check_same_weights,
    load,
    mean_loss,
    step_windows,
    train_plainly,
)
from tests.helpers.tiny_models import make_llama, train_tokenizer

OPTIONS = {
    "optim": "sgd",
    "learning_rate": 0.1,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "logging_steps": 1,
    "report_to": [],
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
    "seed": 3,
    "logging_nan_inf_filter": False,
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["some text"], 300)


def arguments(folder, **options):
    return TrainingArguments(output_dir=str(folder), **{**OPTIONS, **options})


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    ("batch_size", "accumulation"),
    [
        pytest.param(4, 1, marks=pytest.mark.slow),
        (2, 2),
        pytest.param(1, 4, marks=pytest.mark.slow),
    ],
)
def test_steps_are_those_of_a_plain_loop(
    model_path, dataset, tmp_path, capsys, batch_size, accumulation
):
    """Over three epochs; the last step of each has one window."""
    trainer = FusionTrainer(
        load(model_path),
        arguments(
            tmp_path,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_steps=11,
        ),
        train_dataset=dataset,
    )
    trainer.train()
    groups = step_windows(dataset, 4, 11, seed=3)
    assert [len(group) for group in groups[:5]] == [4, 4, 4, 1, 4]
    expected, weights = train_plainly(model_path, batches_of(dataset, groups))
    assert losses(trainer) == pytest.approx(expected, rel=1e-5)
    check_same_weights(trainer.model.state_dict(), weights, 1e-5)


def test_the_objective_and_document_masking_are_those_that_are_given(
    model_path, dataset, tmp_path, capsys
):
    objective = FusionObjective(lm_weight=0.2, temperature=2.0, divergence="forward_kl")
    trainer = FusionTrainer(
        load(model_path),
        arguments(tmp_path, per_device_train_batch_size=4, max_steps=2),
        train_dataset=dataset,
        objective=objective,
        document_masking=True,
    )
    trainer.train()
    model = load(model_path).train()
    batch = fs.data.collate(
        [dataset[window] for window in step_windows(dataset, 4, 1, seed=3)[0]],
        document_masking=True,
    )
    logits = model(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
    )
    expected = fs.losses.fusion_terms(logits.logits, batch, objective).loss.item()
    assert losses(trainer)[0] == pytest.approx(expected, rel=1e-5)


def test_the_held_out_loss_is_a_mean_over_positions(
    model_path, dataset, held_out, tmp_path, capsys
):
    trainer = FusionTrainer(
        load(model_path),
        arguments(
            tmp_path,
            per_device_train_batch_size=4,
            per_device_eval_batch_size=3,
            max_steps=20,
            eval_strategy="steps",
            eval_steps=10,
            eval_on_start=True,
        ),
        train_dataset=dataset,
        eval_dataset={"train": dataset, "other": held_out},
    )
    before = mean_loss(load(model_path), held_out)
    trainer.train()
    found = [entry for entry in trainer.state.log_history if "eval_other_loss" in entry]
    assert len(found) == 3
    names = ("eval_other_loss", "eval_other_lm", "eval_other_fused")
    assert [found[0][name] for name in names] == pytest.approx(before, rel=1e-5)
    after = mean_loss(trainer.model, held_out)
    assert [found[-1][name] for name in names] == pytest.approx(after, rel=1e-5)
    learned = [
        entry["eval_train_loss"]
        for entry in trainer.state.log_history
        if "eval_train_loss" in entry
    ]
    assert learned[2] < learned[1] < learned[0]
    assert trainer.evaluate(held_out)["eval_loss"] == pytest.approx(after[0], rel=1e-5)
    predicted = trainer.predict(held_out)
    assert predicted.predictions.shape == (*predicted.label_ids.shape, 100)
    assert predicted.metrics["test_loss"] == pytest.approx(after[0], rel=1e-5)


def streamed_groups(stream, windows_per_step, steps):
    groups = []
    for epoch in range(steps):
        order = stream.order.windows(epoch).tolist()
        groups += [
            order[start : start + windows_per_step]
            for start in range(0, len(order), windows_per_step)
        ]
    return groups[:steps]


def test_a_stream_is_read_in_its_order(model_path, streamed, tmp_path, capsys):
    stream = fs.StreamingFusedDataset(streamed, seed=5, shuffle_span=6)
    trainer = FusionTrainer(
        load(model_path),
        arguments(
            tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=7
        ),
        train_dataset=stream,
        eval_dataset=stream,
    )
    trainer.train()
    mapped = fs.data.FusedDataset(streamed)
    batches = batches_of(mapped, streamed_groups(stream, 4, 7))
    expected, weights = train_plainly(model_path, batches)
    assert losses(trainer) == pytest.approx(expected, rel=1e-5)
    check_same_weights(trainer.model.state_dict(), weights, 1e-5)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(
        mean_loss(trainer.model, mapped)[0], rel=1e-5
    )


@pytest.mark.parametrize("kind", [pytest.param("mapped", marks=pytest.mark.slow), "streamed"])
@pytest.mark.parametrize("stop", [pytest.param(2, marks=pytest.mark.slow), 6])
def test_a_resumed_run_ends_with_the_same_weights(
    model_path, streamed, tmp_path, capsys, monkeypatch, kind, stop
):
    """In the middle of the first epoch and of the second one; skipped windows are not read."""
    read = []

    def trainer(folder, steps):
        source = (
            fs.data.FusedDataset(streamed)
            if kind == "mapped"
            else fs.StreamingFusedDataset(streamed, seed=5, shuffle_span=6)
        )

        class Reading(FusionTrainer):
            def training_step(self, model, inputs, *rest):
                read.extend(inputs["window"].tolist())
                return super().training_step(model, inputs, *rest)

        return Reading(
            load(model_path),
            arguments(
                folder,
                per_device_train_batch_size=4,
                max_steps=steps,
                optim="adamw_torch",
                save_strategy="steps",
                save_steps=stop,
                learning_rate=1e-2,
            ),
            train_dataset=source,
        )

    whole = trainer(tmp_path / "whole", 9)
    whole.train()
    expected = list(read)
    read.clear()
    trainer(tmp_path / "parts", stop).train()
    resumed = trainer(tmp_path / "parts", 9)
    resumed.train(resume_from_checkpoint=True)
    assert read == expected
    check_same_weights(resumed.model.state_dict(), whole.model.state_dict(), 0.0)


def test_other_orders_are_the_trainers_own(model_path, dataset, tmp_path, capsys):
    seen = []

    class Seeing(FusionTrainer):
        def training_step(self, model, inputs, *rest):
            seen.append(inputs["window"].tolist())
            return super().training_step(model, inputs, *rest)

    Seeing(
        load(model_path),
        arguments(
            tmp_path,
            per_device_train_batch_size=4,
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            dataloader_drop_last=True,
        ),
        train_dataset=dataset,
    ).train()
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_a_model_without_the_datasets_ids_is_refused(dataset, tmp_path):
    with pytest.raises(IncompatibleError, match=r"token id 99.*only 50 ids"):
        FusionTrainer(make_llama(50), arguments(tmp_path), train_dataset=dataset)


SFT = {**OPTIONS, "bf16": False, "gradient_checkpointing": False}


def sft_trainer(model_path, folder, *positional, tokenizer=None, options=None, **arguments):
    return FusionSFTTrainer(
        load(model_path),
        SFTConfig(output_dir=str(folder), **{**SFT, **(options or {})}),
        processing_class=tokenizer,
        **arguments,
    )


def test_trl_makes_the_same_steps(model_path, dataset, held_out, tokenizer, tmp_path, capsys):
    trainer = sft_trainer(
        model_path,
        tmp_path,
        tokenizer=tokenizer,
        options={
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_steps": 6,
            "save_strategy": "steps",
            "save_steps": 6,
        },
        train_dataset=dataset,
        eval_dataset=held_out,
    )
    trainer.train()
    batches = batches_of(dataset, step_windows(dataset, 4, 6, seed=3))
    expected, weights = train_plainly(model_path, batches)
    assert losses(trainer) == pytest.approx(expected, rel=1e-5)
    check_same_weights(trainer.model.state_dict(), weights, 1e-5)
    found = trainer.evaluate()["eval_loss"]
    assert found == pytest.approx(mean_loss(trainer.model, held_out)[0], rel=1e-5)
    assert (tmp_path / "checkpoint-6/model.safetensors").exists()


def test_trl_trains_adapters_on_a_stream(model_path, streamed, tokenizer, tmp_path, capsys):
    stream = fs.StreamingFusedDataset(streamed, seed=5, shuffle_span=6)
    trainer = sft_trainer(
        model_path,
        tmp_path,
        tokenizer=tokenizer,
        options={"per_device_train_batch_size": 4, "max_steps": 12, "learning_rate": 1.0},
        train_dataset=stream,
        eval_dataset={"mapped": fs.data.FusedDataset(streamed)},
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )
    before = trainer.evaluate()["eval_mapped_loss"]
    assert before == pytest.approx(
        mean_loss(load(model_path), fs.data.FusedDataset(streamed))[0], rel=1e-5
    )
    trainer.train()
    assert trainer.evaluate()["eval_mapped_loss"] < before
    trainer.save_model()
    adapter = load_file(tmp_path / "adapter_model.safetensors")
    assert adapter
    assert all("lora_" in name for name in adapter)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packing": True}, "packing=True.*no effect"),
        ({"loss_type": "dft"}, "loss_type='dft'.*no effect"),
    ],
)
def test_trls_own_data_and_loss_are_refused(
    model_path, dataset, tokenizer, tmp_path, options, message
):
    with pytest.raises(InvalidInputError, match=message):
        sft_trainer(
            model_path, tmp_path, tokenizer=tokenizer, options=options, train_dataset=dataset
        )


def test_trl_needs_a_fused_dataset_and_its_own_arguments(model_path, dataset, tmp_path):
    with pytest.raises(InvalidInputError, match="is a list; expected a fused dataset"):
        sft_trainer(model_path, tmp_path, train_dataset=[])
    with pytest.raises(InvalidInputError, match=r"TrainingArguments; expected a trl.SFTConfig"):
        FusionSFTTrainer(load(model_path), arguments(tmp_path), train_dataset=dataset)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loop_with_accelerate_makes_the_same_steps(model_path, dataset, accumulation):
    accelerator = Accelerator(cpu=True)
    loader = fs.data.WindowLoader(dataset, 4 // accumulation, seed=3)
    model = load(model_path).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer, prepared = accelerator.prepare(model, optimizer, loader)
    assert prepared is loader
    found = []
    for _ in range(2):
        batches = iter(loader)
        while step := list(islice(batches, accumulation)):
            found.append(fusion_backward(accelerator, model, step))
            optimizer.step()
            optimizer.zero_grad()
    groups = step_windows(dataset, 4, 8, seed=3)
    expected, weights = train_plainly(model_path, batches_of(dataset, groups))
    assert found == pytest.approx(expected, rel=1e-5)
    check_same_weights(model.state_dict(), weights, 1e-5)


def test_accelerate_does_not_divide_the_loss_again(model_path, dataset):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    batches = batches_of(dataset, [[0, 1]])
    with pytest.raises(InvalidInputError, match=r"gradient_accumulation_steps=2.*all batches"):
        fusion_backward(accelerator, load(model_path), batches)
    with pytest.raises(InvalidInputError, match="at least one batch"):
        fusion_backward(Accelerator(cpu=True), load(model_path), [])
