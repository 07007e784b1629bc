"""What stops a run: it says why and on which documents, and nothing is harmed."""

import math
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fusestore.data import FusedDataset
from fusestore.errors import (
    CorruptionError,
    DivergedError,
    FingerprintMismatchError,
    IncompatibleError,
    NonFiniteError,
)
from fusestore.train.guards import check_spike, check_tokenizer
from tests.helpers import train_runs as runs
from tests.helpers.fused_folder import random_arrays, write_fused
from tests.helpers.train_runs import run

SETTINGS = runs.SETTINGS.model_copy(update={"checkpoint_every": 1})


def checkpoint(folder):
    return load_file(folder / "work" / "checkpoint" / "model.safetensors")


def all_finite(tensors):
    return all(bool(torch.isfinite(value).all()) for value in tensors.values())


def changed(**fields):
    return SETTINGS.model_copy(update=fields)


def test_nan_in_a_distribution_stops_and_names_the_documents(tiny_model_path, tmp_path):
    arrays = random_arrays(500)
    arrays["kind"][:] = 1
    arrays["logprobs"][100] = np.nan
    folder = write_fused(tmp_path / "bad", arrays, window_length=32, chunk_rows=64)
    document = int(arrays["document"][100])
    with pytest.raises(CorruptionError, match=rf"windows .*\b3\b.*documents .*\b{document}\b"):
        run(tiny_model_path, FusedDataset(folder), SETTINGS, tmp_path)
    assert not (tmp_path / "model").exists()


def test_a_poisoned_weight_stops_the_first_step(tiny_model_path, dataset, tmp_path):
    path = tmp_path / "poisoned"
    path.mkdir()
    weights = load_file(tiny_model_path / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 4] = math.nan
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "tokenizer_config.json"):
        (path / name).write_bytes((tiny_model_path / name).read_bytes())
    with pytest.raises(
        NonFiniteError, match=r"Step 1: .* nan for windows .*no checkpoint was kept"
    ):
        run(path, dataset, SETTINGS, tmp_path)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_a_gradient_that_overflows_stops_where_the_loss_does_not(
    tiny_model_path, tmp_path, max_grad_norm
):
    """At T = 1e−30 the loss is about 1e+30, but the square of its gradient is no float32."""
    arrays = random_arrays(500)
    arrays["kind"][:] = 1
    folder = write_fused(tmp_path / "fused", arrays, window_length=32, chunk_rows=64)
    settings = changed(
        temperature=1e-30,
        temperature_squared=False,
        lm_weight=0.0,
        max_grad_norm=max_grad_norm,
    )
    with pytest.raises(NonFiniteError, match=r"Step 1: .* its gradient is inf for windows"):
        run(tiny_model_path, FusedDataset(folder), settings, tmp_path)
    assert not (tmp_path / "work").exists()


def test_weights_that_are_no_numbers_are_neither_kept_nor_published(
    tiny_model_path, dataset, tmp_path
):
    """A learning rate beyond all reason overflows the weights in the last step."""
    settings = changed(learning_rate=3e38, max_steps=1, warmup=0.0, weight_decay=10.0)
    with pytest.raises(NonFiniteError, match=r"After step 1 the weights \S+ are not finite"):
        run(tiny_model_path, dataset, settings, tmp_path)
    assert not (tmp_path / "model").exists()
    with pytest.raises(NonFiniteError, match="After step 1"):
        run(tiny_model_path, dataset, settings.model_copy(update={"max_steps": 2}), tmp_path)
    assert not (tmp_path / "work").exists()


def test_a_huge_learning_rate_is_stopped_as_a_spike(tiny_model_path, dataset, tmp_path):
    """The rate rises to 3 over the run; the checkpoint is of the step before the spike."""
    settings = changed(learning_rate=3.0, warmup=1.0, epochs=20)
    seen = []
    with pytest.raises(DivergedError) as caught:
        run(tiny_model_path, dataset, settings, tmp_path, progress=seen.append)
    message = str(caught.value)
    found = re.match(r"Step (\d+): the loss is ([\d.]+), ([\d.]+) above the median", message)
    step, loss, rise = int(found[1]), float(found[2]), float(found[3])
    losses = [report.point.loss for report in seen]
    assert step == len(losses) + 1 > 3
    usual = float(np.median(losses[-20:]))
    assert loss - usual == pytest.approx(rise, rel=1e-2)
    assert rise > 3.0
    assert re.search(r"windows \[\d.*\] \(documents \[\d.*\]\) of fused", message)
    assert f"the checkpoint of step {step - 1} is kept" in message
    assert all_finite(checkpoint(tmp_path))
    assert not (tmp_path / "model").exists()
    # Another limit is no other run: the checkpoint goes on. Any other setting is.
    with pytest.raises(DivergedError, match=f"Step {step}:"):
        run(tiny_model_path, dataset, settings, tmp_path)
    with pytest.raises(FingerprintMismatchError, match="weight_decay"):
        run(tiny_model_path, dataset, changed(weight_decay=0.2), tmp_path)
    done = run(tiny_model_path, dataset, settings.model_copy(update={"loss_spike": 0.0}), tmp_path)
    assert done.manifest.plan.settings.loss_spike == 0.0
    assert done.manifest.loss_curve[step - 1].loss == pytest.approx(loss, rel=1e-3)
    assert run(tiny_model_path, dataset, settings, tmp_path) == done


@pytest.mark.parametrize(
    ("earlier", "loss", "limit", "stops"),
    [
        ([], 100.0, 3.0, False),
        ([4.0], 7.01, 3.0, True),
        ([4.0] * 5, 7.01, 3.0, True),
        ([4.0] * 5, 6.99, 3.0, False),
        ([4.0] * 5, 100.0, 0.0, False),
        ([4.0] * 5, 0.0, 3.0, False),
        ([9.0] + [4.0] * 10, 7.5, 3.0, True),
    ],
)
def test_what_counts_as_a_spike(dataset, earlier, loss, limit, stops):
    def check():
        check_spike(len(earlier) + 1, loss, earlier, limit, [1], dataset, "nothing is kept")

    if not stops:
        check()
        return
    with pytest.raises(DivergedError, match=r"\(4\); loss_spike allows 3\. .*nothing is kept"):
        check()


def test_vocabulary_that_does_not_fit(tiny_model_path, tmp_path):
    arrays = random_arrays(100, vocab_size=130)
    arrays["ids"][50, 0] = 129
    folder = write_fused(tmp_path / "big", arrays, window_length=32, chunk_rows=64, vocab_size=130)
    with pytest.raises(IncompatibleError, match=r"129.*100 ids"):
        run(tiny_model_path, FusedDataset(folder), SETTINGS, tmp_path)
    # A tokenizer longer than the model is no harm while none of its last ids occur.
    arrays = random_arrays(100)
    folder = write_fused(tmp_path / "ok", arrays, window_length=32, chunk_rows=64, vocab_size=130)
    run(tiny_model_path, FusedDataset(folder), SETTINGS, tmp_path)


@pytest.mark.parametrize("name", ["input_ids", "next_ids", "ids"])
def test_ids_beyond_the_vocabulary_that_the_dataset_claims(tiny_model_path, tmp_path, name):
    arrays = random_arrays(100)
    arrays["kind"][:] = 1
    arrays["next_ids"][40] = 0
    arrays[name][40] = 100
    folder = write_fused(tmp_path / "lies", arrays, window_length=32, chunk_rows=64)
    with pytest.raises(IncompatibleError, match=rf"{name} holds token id 100.*ids 0 to 99"):
        run(tiny_model_path, FusedDataset(folder), SETTINGS, tmp_path)


def test_another_tokenizer_is_refused_even_if_its_ids_would_fit(dataset):
    dataset.plan["recipe"]["target"] = "ab" * 32
    check_tokenizer("ab" * 32, dataset, "model")
    with pytest.raises(IncompatibleError, match=r"abababababababab, .* other text.*fuse for model"):
        check_tokenizer("cd" * 32, dataset, "model")


def test_samples_are_trained_on_where_they_are_unbiased(tiny_model_path, tmp_path):
    folder = write_fused(
        tmp_path / "fused", random_arrays(200), window_length=32, chunk_rows=64, sampled=True
    )
    dataset = FusedDataset(folder)
    assert dataset.sampled
    one_step = changed(max_steps=1, checkpoint_every=None)
    hot = one_step.model_copy(update={"temperature": 2.0})
    with pytest.raises(IncompatibleError, match=r"temperature is 2\.0, .* Use temperature 1"):
        run(tiny_model_path, dataset, hot, tmp_path)
    reverse = one_step.model_copy(update={"divergence": "reverse_kl"})
    with pytest.raises(IncompatibleError, match=r"'reverse_kl', but fused dataset fused"):
        run(tiny_model_path, dataset, reverse, tmp_path)
    assert not (tmp_path / "model").exists()
    run(tiny_model_path, dataset, hot.model_copy(update={"objective": "clm"}), tmp_path / "clm")
    run(tiny_model_path, dataset, one_step, tmp_path / "fuse")
