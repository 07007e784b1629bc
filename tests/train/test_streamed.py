"""Training on a stream: in the stream's order, resumed bit for bit, and nothing is copied first."""

import pytest
import torch

from fusestore.data import FusedDataset, FusedMixture, StreamingFusedDataset, StreamingMixture
from fusestore.data.mixable import own_seed
from fusestore.data.shard_cache import client
from fusestore.errors import FingerprintMismatchError, InvalidInputError
from fusestore.storage.location import Location
from fusestore.train.manifest import TrainingPlan
from fusestore.train.step_batches import step_batches
from tests.helpers.range_server import RangeServer
from tests.helpers.train_runs import SETTINGS, folder_bytes, run, signal_after
from tests.helpers.whole_dataset import share, write_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """33 windows in 5 shards."""
    root = tmp_path_factory.mktemp("origin")
    made, _ = write_dataset(root / "local", num_tokens=520, window_length=16, rows_per_shard=128)
    share(made, Location.parse(root / "shared"))
    return root


@pytest.fixture
def site(folder):
    with RangeServer(folder / "shared") as server:
        yield server


def stream(url, cache, **options):
    return StreamingFusedDataset(
        url, **{"cache_dir": cache, "seed": 3, "shuffle_span": 6, **options}
    )


def plan_of(dataset, world_size=1, **settings):
    return TrainingPlan(
        dataset_digest=dataset.digest,
        base_model_digest="0" * 64,
        settings=SETTINGS.model_copy(update={"attend_within": "window", **settings}),
        world_size=world_size,
        total_steps=9,
    )


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_steps_have_the_windows_of_the_streams_order(site, tmp_path, workers):
    order = stream(site.url, tmp_path).order
    expected = [order.windows(epoch).tolist() for epoch in range(2)]
    for done in (0, 4, 5, 6, 7):
        dataset = stream(site.url, tmp_path)
        steps = step_batches(dataset, plan_of(dataset, num_workers=workers), 0, done)
        epoch, into = divmod(done, 6)
        for _ in range(7):
            windows = [window for batch in next(steps) for window in batch["window"].tolist()]
            assert windows == expected[epoch][into * 6 : into * 6 + 6]
            epoch, into = (epoch, into + 1) if into < 5 else (epoch + 1, 0)
            if epoch == 2:
                break
        steps.close()


@pytest.mark.parametrize("world_size", [1, 2, 5, 31])
def test_all_ranks_have_the_batches_of_a_mapped_dataset(site, folder, tmp_path, world_size):
    mapped = FusedDataset(folder / "local")
    for rank in {0, 1, world_size - 1} & set(range(world_size)):
        place = {"rank": rank, "world_size": world_size}
        dataset = stream(site.url, tmp_path, seed=SETTINGS.seed, shuffle_span=None, **place)
        plan = plan_of(dataset, world_size=world_size)
        for done in (0, 1):
            ours, expected = (step_batches(each, plan, rank, done) for each in (dataset, mapped))
            for _ in range(13):
                for one, other in zip(next(ours), next(expected), strict=True):
                    assert one.keys() == other.keys()
                    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(InvalidInputError, match="without rank"):
        next(step_batches(dataset, plan_of(dataset, world_size=world_size + 1), 0, 0))


def test_resumes_bit_for_bit_wherever_the_dataset_lies(tiny_model_path, site, folder, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    result = run(tiny_model_path, stream(site.url, tmp_path / "a"), SETTINGS, whole)
    assert result.manifest.num_tokens == 2 * 520
    assert result.manifest.plan.stream_order == {"seed": 3, "shuffle_span": 6}
    # The same order over the local form, cut short in the middle of an epoch and at its end.
    for step in (2, 6):
        with pytest.raises(KeyboardInterrupt):
            run(
                tiny_model_path,
                stream(folder / "local", tmp_path / "b"),
                SETTINGS,
                stopped,
                progress=signal_after(step),
            )
    run(tiny_model_path, stream(site.url, tmp_path / "c"), SETTINGS, stopped)
    assert folder_bytes(stopped / "model") == folder_bytes(whole / "model")
    # Shards are fetched; no dataset is copied.
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"stream"}


def test_a_stream_that_mixes_everything_trains_as_the_dataset_does(
    tiny_model_path, site, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(client, "_MAX_OPEN", 2)
    mapped = FusedDataset(folder / "local")
    run(tiny_model_path, mapped, SETTINGS, tmp_path / "mapped")

    def streamed():
        return stream(site.url, tmp_path / "a", seed=SETTINGS.seed, shuffle_span=None)

    run(tiny_model_path, streamed(), SETTINGS, tmp_path / "streamed")
    expected = folder_bytes(tmp_path / "mapped/model")
    assert folder_bytes(tmp_path / "streamed/model") == expected
    # So a run may go on elsewhere.
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model_path, mapped, SETTINGS, tmp_path / "moved", progress=signal_after(7))
    run(tiny_model_path, streamed(), SETTINGS, tmp_path / "moved")
    assert folder_bytes(tmp_path / "moved/model") == expected


def test_a_run_does_not_change_its_order_on_the_way(tiny_model_path, site, folder, tmp_path):
    mapped = FusedDataset(folder / "local")
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model_path, mapped, SETTINGS, tmp_path, progress=signal_after(2))
    for other in (stream(site.url, tmp_path / "a"), stream(site.url, tmp_path / "a", seed=4)):
        with pytest.raises(FingerprintMismatchError):
            run(tiny_model_path, other, SETTINGS, tmp_path)


def test_a_mixture_of_streams(tiny_model_path, site, folder, tmp_path):
    other, _ = write_dataset(
        tmp_path / "other", num_tokens=130, window_length=16, rows_per_shard=128, seed=1
    )
    mapped = FusedMixture([FusedDataset(folder / "local"), FusedDataset(other)], [2, 1])
    seeds = [own_seed(dataset.digest, SETTINGS.seed) for dataset in mapped.datasets]

    def mixture(**options):
        urls = (site.url, f"local://{other}")
        streams = [
            stream(url, tmp_path / "cache", **{"seed": seed, **options})
            for url, seed in zip(urls, seeds, strict=True)
        ]
        return StreamingMixture(streams, [2, 1])

    run(tiny_model_path, mapped, SETTINGS, tmp_path / "mapped")
    run(tiny_model_path, mixture(shuffle_span=None), SETTINGS, tmp_path / "streamed")
    assert folder_bytes(tmp_path / "streamed/model") == folder_bytes(tmp_path / "mapped/model")
    result = run(tiny_model_path, mixture(), SETTINGS, tmp_path / "own")
    assert result.manifest.plan.dataset_digest == mapped.digest
    assert result.manifest.plan.stream_order["shuffle_spans"] == [6, 6]


def test_what_messages_and_checks_ask_of_a_stream(site, folder, tmp_path):
    dataset, mapped = stream(site.url, tmp_path), FusedDataset(folder / "local")
    assert dataset.largest_token_id() == mapped.largest_token_id()
    assert dataset.describe([3, -1, 7]) == f"windows [3, 7] of {site.url}"
    assert dataset.state_dict()["position"] == 0
