"""Two processes that share a model capture what one captures, or both end."""

import re

import pytest

from fusestore.cache.reader import open_cache
from fusestore.capture.settings import CaptureSettings
from fusestore.errors import IncompatibleError, InvalidInputError
from tests.helpers.engine_job import check_same, make_job
from tests.helpers.placements import DIVIDES
from tests.helpers.rank_processes import capture_by_two


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return make_job(tmp_path_factory.mktemp("shared"))


@DIVIDES
def test_ranks_capture_what_one_process_does(job):
    """Also where one of them runs out of memory for more than two documents."""
    first, second = capture_by_two(job, "two", fault="out of memory", batch_size=3)
    assert (first.code, second.code) == (0, 0), first.out + second.out
    assert "created True" in first.out
    assert re.search(r"writes [1-9]\d*", first.out)
    # The follower ran the same batches, halved with the others, wrote nothing and said nothing.
    assert "writes 0 largest batch 3" in second.out
    assert "line" not in second.out
    cache = open_cache(job.store, "two")
    check_same(job.expected, cache[:])
    assert (
        cache.manifest.fingerprint.model_copy(update={"source": "reference"})
        == open_cache(job.store, "reference").manifest.fingerprint
    )


@DIVIDES
@pytest.mark.slow
def test_a_rank_that_dies_ends_the_capture_and_the_next_continues(job):
    first, second = capture_by_two(job, "died", fault="dies")
    assert second.code != 0
    assert "error" not in second.out
    assert first.code != 0
    assert "error LostRankError Another of the processes that share the model ended" in first.out
    assert not (job.store.cache("died") / "manifest.json").exists()
    done = len((job.store.cache("died") / "receipts").list())
    first, second = capture_by_two(job, "died")
    assert (first.code, second.code) == (0, 0), first.out + second.out
    assert done > 0
    check_same(job.expected, open_cache(job.store, "died")[:])


@DIVIDES
@pytest.mark.slow
def test_an_error_of_one_rank_is_an_error_of_all_and_rank_0_says_it(job):
    first, second = capture_by_two(job, "failed", fault="fails after")
    assert (first.code, second.code) == (1, 1)
    assert "error EngineError The capture failed on rank 1: a part is missing" in first.out
    assert "error ReportedByRankZeroError" in second.out


@DIVIDES
@pytest.mark.slow
def test_a_rank_that_fails_while_the_others_wait_for_it_ends_all(job):
    first, second = capture_by_two(job, "stuck", fault="fails before")
    assert first.code != 0
    assert second.code != 0
    assert re.search(
        r"error LostRankError .*This process \(rank 1\): a part is missing", second.out
    )
    assert "error LostRankError" in first.out


@DIVIDES
@pytest.mark.slow
def test_a_model_that_is_refused_is_refused_once(job):
    first, second = capture_by_two(job, "refused", quantization="none")
    assert (first.code, second.code) == (1, 1)
    assert "error InvalidInputError quantization is none" in first.out
    assert "error ReportedByRankZeroError" in second.out


def test_one_process_alone_has_no_part_of_a_model(job):
    with pytest.raises(InvalidInputError, match="torchrun --nproc-per-node"):
        job.capture("alone", tensor_parallel=True)


def test_only_captures_share_a_model(job):
    from fusestore.capture.estimate import estimate_capture
    from fusestore.models.model import Model

    settings = CaptureSettings(tensor_parallel=True, top_k=7)
    model = Model.open(str(job.folder))
    with pytest.raises(IncompatibleError, match="tensor_parallel is for captures"):
        estimate_capture(job.store, "tiny", model, job.corpus, settings)
