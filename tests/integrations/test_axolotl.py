"""axolotl itself trains on a fused dataset: `make test-axolotl`, in an environment of its own."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from fusestore.data import FusedDataset
from fusestore.errors import InvalidInputError
from tests.helpers.plain_training import batches_of, load, mean_loss, step_windows, train_plainly
from tests.helpers.tiny_models import make_llama, save_model, train_tokenizer
from tests.helpers.whole_dataset import write_dataset

pytest.importorskip("axolotl", reason="only in the environment of `make test-axolotl`")

EXAMPLE = Path(__file__).parents[2] / "examples" / "axolotl.yaml"


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A folder with the names of the example: a student with an id for every token, and a store."""
    folder = tmp_path_factory.mktemp("axolotl")
    tokenizer = train_tokenizer(["some text"], 300)
    tokenizer.pad_token = tokenizer.eos_token
    save_model(folder / "student", make_llama(300), tokenizer)
    for name, seed in (("demo", 0), ("held-out", 1)):
        write_dataset(
            folder / "my.store/fused" / name,
            num_tokens=12 * 16 + 5,
            window_length=16,
            rows_per_shard=48,
            seed=seed,
        )
    return folder


def config(folder, section=None, **changes):
    """The example, for a short run on a processor."""
    settings = yaml.safe_load(EXAMPLE.read_text())
    settings["fusestore"] |= section or {}
    settings |= {
        "seed": 3,
        "max_steps": 6,
        "micro_batch_size": 2,
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "lr_scheduler": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "bf16": False,
        "tf32": False,
        **changes,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def train(path):
    from axolotl.cli.train import do_cli

    do_cli(str(path))


@pytest.fixture
def _in_the_folder(job, monkeypatch):
    monkeypatch.chdir(job)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("AXOLOTL_DO_NOT_TRACK", "1")
    monkeypatch.setattr("sys.argv", ["axolotl"])


@pytest.mark.usefixtures("_in_the_folder")
@pytest.mark.parametrize("stream", [False, True])
def test_steps_and_held_out_losses_are_those_of_a_plain_loop(job, stream):
    output = f"trained-{stream}"
    section = {"evaluate": "held-out", "stream": stream}
    train(config(job, section, output_dir=output, eval_steps=3, save_steps=3))
    (state,) = (job / output).glob("checkpoint-6/trainer_state.json")
    history = json.loads(state.read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    held_out = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    model = AutoModelForCausalLM.from_pretrained(job / output, dtype=torch.float32)
    other = FusedDataset(job / "my.store/fused/held-out")
    assert held_out[6] == pytest.approx(mean_loss(model, other)[0], rel=1e-5)
    assert held_out[6] < mean_loss(load(job / "student"), other)[0]
    if not stream:
        dataset = FusedDataset(job / "my.store/fused/demo")
        batches = batches_of(dataset, step_windows(dataset, 4, 6, seed=3))
        expected, weights = train_plainly(job / "student", batches)
        assert losses == pytest.approx(expected, rel=1e-5)
        for name, value in model.state_dict().items():
            assert torch.allclose(value, weights[name], rtol=0, atol=1e-5), name


@pytest.mark.usefixtures("_in_the_folder")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_packing": True}, "sample_packing: True has no effect"),
        ({"val_set_size": 0.1}, "val_set_size: 0.1 has no effect"),
        ({"fusestore": None}, "expected a section with store and fused"),
    ],
)
def test_settings_of_its_own_data_are_refused(job, changes, message):
    with pytest.raises(InvalidInputError, match=message):
        train(config(job, **changes))
