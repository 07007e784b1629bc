"""Captures killed at random moments: nothing torn, nothing lost, and the same bytes in the end."""

import random
import shutil

import pytest

from tests.helpers.store_contents import check_nothing_torn, contents


def crash_many_times(captures, new_store, whole, folder, kills):
    seconds = max(captures.run(new_store(folder / f"again-{number}"))[1] for number in range(2))
    choice = random.Random(kills)  # noqa: S311 - the moments only need to differ
    root = new_store(folder / "killed")
    done = 0
    while done < kills:
        finished, _ = captures.run(root, choice.uniform(0, seconds))
        done += not finished
        check_nothing_torn(root, whole)
        if finished:
            assert contents(root) == whole
            shutil.rmtree(root / "caches")
            shutil.rmtree(root / "vocabularies")
            shutil.rmtree(root / "corpora/demo/tokens")
    assert captures.run(root)[0]
    assert contents(root) == whole


@pytest.mark.slow
def test_captures_killed_30_times_resume_to_the_same_bytes(captures, new_store, whole, tmp_path):
    crash_many_times(captures, new_store, whole, tmp_path, 30)
