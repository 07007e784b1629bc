"""A run goes on with another number of processes: the same windows, once each, the same weights."""

import itertools
import re
import time
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from fusestore.data import FusedDataset, StreamingFusedDataset
from fusestore.errors import FingerprintMismatchError, IncompatibleError
from fusestore.train import TrainSettings
from fusestore.train.division import Division, begun_division, divided_among
from fusestore.train.manifest import TrainingPlan
from fusestore.train.process_state import seed_step
from fusestore.train.step_batches import step_batches
from tests.helpers.tiny_models import make_llama, save_model
from tests.helpers.train_processes import FSDP_VARIABLES, processes, zero_variables
from tests.helpers.train_runs import held_out, manifest, run, signal_after
from tests.helpers.whole_dataset import write_dataset

NUM_WINDOWS = 13
STEPS = 8

SETTINGS = TrainSettings(
    lm_weight=0.5,
    learning_rate=1e-2,
    batch_size=1,
    gradient_accumulation=2,
    epochs=2,
    precision="float32",
    attend_within="window",
    seed=5,
    checkpoint_every=1,
    eval_every=3,
    result="best",
)
"""4 windows a step of two processes: of the last step of an epoch one process has no window."""


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    """A model without dropout, of which each process draws its own."""
    model = make_llama(100, context=64, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2)
    folder = save_model(tmp_path_factory.mktemp("model") / "tiny", model, None)
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """13 windows, the last one short."""
    folder = tmp_path_factory.mktemp("data") / "fused"
    number = 32 * NUM_WINDOWS - 9
    return write_dataset(folder, num_tokens=number, window_length=32, rows_per_shard=128)[0]


@pytest.fixture(scope="module")
def undisturbed(model_path, data, tmp_path_factory):
    """One process, from beginning to end."""
    folder = tmp_path_factory.mktemp("undisturbed")
    whole = SETTINGS.model_copy(update={"batch_size": 4, "gradient_accumulation": 1})
    run(model_path, FusedDataset(data), whole, folder, evaluation=held_out())
    return folder


def check_same_end(folder, undisturbed):
    found, expected = manifest(folder), manifest(undisturbed)
    assert found["num_tokens"] == expected["num_tokens"] == 2 * (32 * NUM_WINDOWS - 9)
    assert found["result_step"] == expected["result_step"]
    assert len(found["loss_curve"]) == STEPS
    for one, two in zip(found["loss_curve"], expected["loss_curve"], strict=True):
        assert one == pytest.approx(two, rel=1e-4)
    for one, two in zip(found["evaluations"], expected["evaluations"], strict=True):
        assert one["metrics"] == pytest.approx(two["metrics"], rel=1e-4)
    weights, others = (
        load_file(each / "model/model.safetensors") for each in (folder, undisturbed)
    )
    for name in others:
        torch.testing.assert_close(weights[name], others[name], rtol=1e-3, atol=1e-5)


# Which windows a step has


def plan_of(dataset, division, **changes):
    chosen = division.applied(SETTINGS).model_copy(update=changes)
    return TrainingPlan(
        dataset_digest=dataset.digest,
        base_model_digest="0" * 64,
        settings=chosen,
        world_size=division.world_size,
        total_steps=9,
    )


def windows_of_steps(make, division, done, count):
    """The windows of each step, over all ranks; in the order of the dataset."""
    steps = []
    for rank in range(division.world_size):
        dataset = make(rank, division.world_size)
        made = step_batches(dataset, plan_of(dataset, division), rank, done)
        steps.append(
            [[b["window"].tolist() for b in batches] for batches in itertools.islice(made, count)]
        )
        made.close()
    found = []
    for of_ranks in zip(*steps, strict=True):
        # Every process makes the same number of forward passes, or they would wait forever.
        assert len({len(batches) for batches in of_ranks}) == 1
        windows = []
        for batches in zip(*of_ranks, strict=True):
            longest = max(map(len, batches))
            windows += [b[n] for n in range(longest) for b in batches if n < len(b) and b[n] >= 0]
        found.append(windows)
    return found


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([1, 2, 3, 4, 6, 12]), st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(0, 5)
)
@example(12, 4, 1)
def test_a_step_has_the_same_windows_for_every_number_of_processes(data, batch, world, done):
    mapped = FusedDataset(data)
    begun = divided_among(Division(batch, 12 // batch, 1), world, "x")
    assert begun.windows == 12
    expected = windows_of_steps(lambda *_: mapped, Division(12, 1, 1), 0, 9)
    assert sorted(expected[0] + expected[1]) == list(range(NUM_WINDOWS))
    assert windows_of_steps(lambda *_: mapped, begun, done, 3) == expected[done : done + 3]


def test_a_stream_has_them_too(tmp_path):
    folder, _ = write_dataset(
        tmp_path / "local", num_tokens=200, window_length=16, rows_per_shard=64
    )
    mapped = FusedDataset(folder)

    def stream(rank, world_size):
        return StreamingFusedDataset(
            folder,
            cache_dir=tmp_path,
            seed=SETTINGS.seed,
            shuffle_span=None,
            rank=rank,
            world_size=world_size,
        )

    expected = windows_of_steps(lambda *_: mapped, Division(4, 1, 1), 0, 8)
    assert sorted(itertools.chain(*expected[:4])) == list(range(len(mapped))) == list(range(13))
    for division in (Division(1, 4, 1), Division(2, 1, 2), Division(1, 2, 2), Division(1, 1, 4)):
        for done in (0, 2, 3):
            found = windows_of_steps(stream, division, done, 5)
            assert found == expected[done : done + 5]


def test_how_a_step_is_divided():
    begun = Division(4, 2, 2)
    assert divided_among(begun, 1, "x") == (4, 4, 1)
    assert divided_among(begun, 4, "x") == (4, 1, 4)
    assert divided_among(begun, 8, "x") == (2, 1, 8)
    assert divided_among(begun, 16, "x") == (1, 1, 16)
    assert divided_among(Division(3, 2, 2), 4, "x") == (3, 1, 4)
    assert divided_among(Division(3, 1, 4), 3, "x") == (2, 2, 3)
    with pytest.raises(IncompatibleError, match=r"16 windows a step.*1, 2, 4, 8, 16 processes"):
        divided_among(begun, 3, "x")
    # The same command; other settings with the same product; another run.
    assert begun_division(begun, Division(4, 2, 3)) == begun
    assert begun_division(begun, Division(16, 1, 1)) == begun
    assert begun_division(begun, Division(8, 1, 1)) == (8, 1, 1)


def test_random_numbers_follow_from_step_and_rank():
    drawn = []
    with torch.random.fork_rng():
        for step, rank in ((1, 0), (1, 1), (2, 0), (1, 0)):
            seed_step(5, step, rank)
            drawn.append(float(torch.rand(())))
    assert drawn[3] == drawn[0]
    assert len(set(drawn)) == 3


# Runs


def test_other_settings_with_the_same_windows_go_on(model_path, data, undisturbed, tmp_path):
    """One process, which is all that this needs."""
    dataset = FusedDataset(data)
    first = SETTINGS.model_copy(update={"batch_size": 2})
    options = {"evaluation": held_out()}
    with pytest.raises(KeyboardInterrupt):
        run(model_path, dataset, first, tmp_path, progress=signal_after(3), **options)
    for other in (
        first.model_copy(update={"batch_size": 3}),
        first.model_copy(update={"gradient_accumulation": 1}),
    ):
        with pytest.raises(FingerprintMismatchError, match=r"windows of a step .*: 4 in the.*now"):
            run(model_path, dataset, other, tmp_path, **options)
    other = first.model_copy(update={"batch_size": 1, "gradient_accumulation": 4})
    run(model_path, dataset, other, tmp_path, **options)
    check_same_end(tmp_path, undisturbed)
    # The plan is that of the beginning; finished is finished, by either.
    assert manifest(tmp_path)["plan"]["settings"]["batch_size"] == 2
    for same in (first, other):
        run(model_path, dataset, same, tmp_path, progress=pytest.fail, **options)


@pytest.mark.slow
def test_two_then_four_then_one(model_path, data, undisturbed, tmp_path):
    """Stopped by SIGTERM at each change; of a local dataset, then of a stream of it."""
    arguments = (model_path, data, tmp_path, SETTINGS)
    stream: dict[str, Any] = {"STREAMED": "true"}
    for world_size, stop_after, variables in ((2, 3, {}), (4, 5, stream)):
        codes, errors = processes(world_size, *arguments, stop_after, **variables)
        assert all(codes), errors
        assert f"Stopped after step {stop_after} of {STEPS}" in "".join(errors)
    result = run(model_path, FusedDataset(data), SETTINGS, tmp_path, evaluation=held_out())
    assert result.manifest.plan.world_size == 2
    check_same_end(tmp_path, undisturbed)


@pytest.mark.slow
def test_one_then_two_that_shard(model_path, data, undisturbed, tmp_path):
    one = SETTINGS.model_copy(update={"gradient_accumulation": 4})
    with pytest.raises(KeyboardInterrupt):
        run(
            model_path,
            FusedDataset(data),
            one,
            tmp_path,
            evaluation=held_out(),
            progress=signal_after(3),
        )
    codes, errors = processes(2, model_path, data, tmp_path, one, **FSDP_VARIABLES)
    assert codes == [0, 0], errors
    assert "layers in pieces: True" in errors[0]
    check_same_end(tmp_path, undisturbed)


@pytest.mark.slow
def test_two_under_zero_then_one(model_path, data, undisturbed, tmp_path):
    pytest.importorskip("deepspeed")
    variables = zero_variables(3, tmp_path / "zero.json")
    codes, errors = processes(2, model_path, data, tmp_path, SETTINGS, 4, **variables)
    assert all(codes), errors
    assert f"Stopped after step 4 of {STEPS}" in "".join(errors)
    run(model_path, FusedDataset(data), SETTINGS, tmp_path, evaluation=held_out())
    check_same_end(tmp_path, undisturbed)


@pytest.mark.slow
def test_a_killed_process_ends_the_other_and_one_goes_on(model_path, data, undisturbed, tmp_path):
    begin = time.monotonic()
    codes, errors = processes(2, model_path, data, tmp_path, SETTINGS, KILL="rank 1 pass 7")
    assert time.monotonic() - begin < 60
    assert codes[1] == -9
    assert codes[0] == 1, errors
    assert re.search(
        r"LostRankError: Process 0 of 2 lost another.*The checkpoint of step 3 is kept in .*"
        "Start all processes again by the same command",
        errors[0],
    )
    run(model_path, FusedDataset(data), SETTINGS, tmp_path, evaluation=held_out())
    check_same_end(tmp_path, undisturbed)
