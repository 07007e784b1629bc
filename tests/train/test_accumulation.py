"""One step over the same windows, however they are divided into batches, accumulation and ranks."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from fusestore.data import FusedDataset, collate
from fusestore.losses import fusion_terms
from fusestore.train import TrainSettings
from tests.helpers.fused_folder import random_arrays, write_fused
from tests.helpers.tiny_models import make_llama, save_model
from tests.helpers.train_processes import two_processes
from tests.helpers.train_runs import run

NUM_WINDOWS = 8
SETTINGS = TrainSettings(
    lm_weight=0.5, learning_rate=1e-2, max_steps=1, precision="float32", max_grad_norm=0.0, seed=5
)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    """A model without dropout, which depends on the batches."""
    folder = save_model(tmp_path_factory.mktemp("model"), make_llama(100, context=64), None)
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """8 windows with few and many labels and distributions, the last one short."""
    arrays = random_arrays(7 * 32 + 9)
    window = np.arange(len(arrays["next_ids"])) // 32
    place = np.arange(len(arrays["next_ids"])) % 32
    arrays["next_ids"][place >= 4 * window + 3] = -100
    arrays["kind"][(window + place) % 3 == 0] = 0
    return write_fused(
        tmp_path_factory.mktemp("data") / "fused", arrays, window_length=32, chunk_rows=64
    )


@pytest.fixture(scope="module")
def reference(model_path, uneven):
    """Loss, its parts and the norm of its gradient over all windows, in float64."""
    dataset = FusedDataset(uneven)
    assert len(dataset) == NUM_WINDOWS
    batch = collate([dataset[window] for window in range(NUM_WINDOWS)])
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float64)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    terms = fusion_terms(logits, batch, SETTINGS.fusion_objective(0.5))
    terms.loss.backward()
    norm = torch.stack([value.grad.norm() for value in model.parameters()]).norm()
    return [float(value.detach()) for value in (terms.loss, terms.lm, terms.fused, norm)]


def settings_of(batch_size, accumulation, **changes):
    return SETTINGS.model_copy(
        update={"batch_size": batch_size, "gradient_accumulation": accumulation, **changes}
    )


def step_of(manifest):
    [point] = manifest["loss_curve"]
    return [point[name] for name in ("loss", "lm", "fused", "grad_norm")]


@pytest.mark.parametrize("logits", ["whole", "chunked"])
@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (2, 4), (1, 8), (3, 3)])
def test_batches_and_accumulation(
    model_path, uneven, reference, tmp_path, batch_size, accumulation, logits
):
    settings = settings_of(batch_size, accumulation, logits=logits)
    trained = run(model_path, FusedDataset(uneven), settings, tmp_path)
    assert step_of(trained.manifest.model_dump()) == pytest.approx(reference, rel=2e-6)


@pytest.mark.slow
def test_ranks(model_path, uneven, reference, tmp_path):
    for batch_size, accumulation in ((4, 1), (1, 4)):
        folder = tmp_path / str(batch_size)
        codes, errors = two_processes(
            model_path, uneven, folder, settings_of(batch_size, accumulation)
        )
        assert codes == [0, 0], errors
        manifest = json.loads((folder / "model" / "manifest.json").read_bytes())
        assert step_of(manifest) == pytest.approx(reference, rel=2e-6)
