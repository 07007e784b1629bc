"""verify finds every flipped, cut or missing byte, in every kind of file."""

import random

import numpy as np
import pytest
from pydantic import ValidationError

from fusestore.cache.manifest import Fingerprint
from fusestore.cache.reader import open_cache
from fusestore.cache.rows import Rows
from fusestore.cache.verify import row_problems, verify_cache
from fusestore.errors import NotFoundError
from fusestore.store.layout import Store

FILES = sorted(
    [
        "fingerprint.json",
        "manifest.json",
        "zarr.json",
        "receipts/tokens.json",
        "receipts/000001.json",
        "document_offsets/c/0",
        "rank_to_id/c/0",
        "token_ids/c/1",
        "end_offsets/c/0",
        "label_logprob/c/1",
        "tail/c/2",
        "ids/c/1/0",
        "logprobs/c/0/0",
        *(f"{name}/zarr.json" for name in ("ids", "logprobs", "tail", "rank_to_id")),
    ]
)


def damage(path, choice):
    """Flip a bit, cut, extend or remove; every result differs from the file."""
    data = bytearray(path.read_bytes())
    match choice.choice(["flip", "flip", "flip", "cut", "extend", "remove"]):
        case "flip":
            data[choice.randrange(len(data))] ^= 1 << choice.randrange(8)
        case "cut":
            data = data[: choice.randrange(len(data))]
        case "extend":
            data += b"\0"
        case "remove":
            path.unlink()
            return
    path.write_bytes(data)


def assert_all_damage_is_found(tmp_path, capture, seeds):
    capture.write(Store.open(tmp_path))
    location = Store.open(tmp_path).cache("demo")
    folder = location.path
    assert set(FILES) <= set(location.sizes())
    for file in FILES:
        for seed in seeds:
            whole = (folder / file).read_bytes()
            damage(folder / file, random.Random(f"{file} {seed}"))  # noqa: S311 - repeatable
            found = {finding.file for finding in verify_cache(location)}
            assert file in found, (file, seed, found)
            (folder / file).write_bytes(whole)
    assert verify_cache(location) == []


def test_any_damage_to_any_kind_of_file_is_found(tmp_path, capture):
    assert_all_damage_is_found(tmp_path, capture, range(5))


@pytest.mark.slow
def test_any_damage_to_any_kind_of_file_is_found_at_length(tmp_path, capture):
    assert_all_damage_is_found(tmp_path, capture, range(5, 70))


def test_quick_looks_at_sizes_and_receipts(tmp_path, capture):
    capture.write(Store.open(tmp_path))
    location = Store.open(tmp_path).cache("demo")
    file = (location / "ids/c/1/0").path
    data = bytearray(file.read_bytes())
    data[3] ^= 8
    file.write_bytes(data)
    assert verify_cache(location, quick=True) == []
    file.write_bytes(data[:-1])
    (finding,) = verify_cache(location, quick=True)
    assert finding.file == "ids/c/1/0"
    assert "its receipt says" in finding.problem


def test_verify_works_remotely(s3_url, capture):
    capture.write(Store.open(s3_url))
    location = Store.open(s3_url).cache("demo")
    assert verify_cache(location) == []
    (location / "tail/c/1").delete()
    assert [finding.file for finding in verify_cache(location)] == ["tail/c/1"]


def test_nothing_there(tmp_path):
    with pytest.raises(NotFoundError, match="no cache"):
        verify_cache(Store.open(tmp_path).cache("demo"))


def test_a_shard_of_another_cache_is_found(tmp_path, make):
    store = Store.open(tmp_path)
    make().write(store, "one")
    make(add_bos=True).write(store, "two")
    one, two = store.cache("one").path, store.cache("two").path
    (one / "receipts/000001.json").write_bytes((two / "receipts/000001.json").read_bytes())
    assert "receipts/000001.json" in {f.file for f in verify_cache(store.cache("one"))}


@pytest.mark.parametrize(
    ("array", "change"),
    [
        ("logprobs", lambda rows: np.copyto(rows.logprobs[4, 3:4], 0)),
        ("ids", lambda rows: np.copyto(rows.ids[4, 3:5], 7)),
        ("tail", lambda rows: np.copyto(rows.tail[4:5], -0.2)),
        ("label_logprob", lambda rows: np.copyto(rows.label_logprob[5:6], 1)),
        ("label_logprob", lambda rows: np.copyto(rows.label_logprob[6:7], np.nan)),
        ("label_logprob", lambda rows: np.copyto(rows.label_logprob[4:5], -1)),
    ],
)
def test_rows_that_break_a_rule_are_found(capture, array, change):
    rows = Rows(**{name: values.copy() for name, values in vars(capture.rows).items()})
    unlabeled = np.isnan(rows.label_logprob)
    assert list(row_problems(rows, capture.fingerprint, unlabeled)) == []
    change(rows)
    assert array in {name for name, _ in row_problems(rows, capture.fingerprint, unlabeled)}


def test_labels_missing_without_a_skipped_document_are_found(tmp_path, make):
    capture = make()
    capture.rows.label_logprob[8] = np.nan
    capture.write(Store.open(tmp_path))
    location = open_cache(tmp_path, "demo").location
    assert {finding.file for finding in verify_cache(location)} == {"label_logprob/c/0"}


def changed(capture, **settings):
    """The capture's fingerprint with other settings, checked anew."""
    return Fingerprint.model_validate({**capture.fingerprint.model_dump(), **settings})


def sampled_rows():
    """Rows 0 and 1: 4 draws each; row 2: of a skipped document."""
    with np.errstate(divide="ignore"):
        logprobs = np.log(np.array([[2, 1, 1, 0], [4, 0, 0, 0], [0, 0, 0, 0]]) / 4)
    return Rows(
        np.array([[7, 3, 5, 0], [1, 0, 0, 0], [0, 0, 0, 0]], np.int32),
        logprobs.astype(np.float32),
        np.array([-np.inf, -np.inf, 0], np.float32),
        np.array([-1, np.nan, np.nan], np.float32),
    )


def test_rows_that_are_no_samples_are_found(make):
    fingerprint = changed(make(k=4), selection="sampled", seed=0, logprob_step=None)
    unlabeled = np.array([False, True, True])
    rows = sampled_rows()
    assert list(row_problems(rows, fingerprint, unlabeled)) == []
    rows.logprobs[0, 2] = -np.inf
    assert [name for name, _ in row_problems(rows, fingerprint, unlabeled)] == ["logprobs"]
    rows = sampled_rows()
    rows.tail[2] = -np.inf
    assert [name for name, _ in row_problems(rows, fingerprint, unlabeled)] == ["tail"]


@pytest.mark.parametrize("step", [None, 1 / 16])
def test_a_nucleus_that_ends_too_early_is_found(make, step):
    with np.errstate(divide="ignore"):
        logprobs = np.log(np.array([[0.6, 0.3, 0.0], [0.3, 0.2, 0.1]], np.float32))
    rows = Rows(
        np.array([[4, 2, 0], [1, 2, 3]], np.int32),
        logprobs,
        np.log(np.array([0.1, 0.4], np.float32)),
        np.array([-1, np.nan], np.float32),
    )
    unlabeled = np.array([False, True])
    for top_p, problems in ((0.8, []), (0.97, ["logprobs"])):
        profile = "compact" if step else "lossless"
        fingerprint = changed(
            make(k=3), selection="top-p", top_p=top_p, logprob_step=step, profile=profile
        )
        found = [name for name, _ in row_problems(rows, fingerprint, unlabeled)]
        assert found == problems


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"selection": "sampled", "logprob_step": None}, "needs a seed"),
        ({"selection": "sampled", "seed": 1}, "logprob_step must be null"),
        ({"selection": "top-p"}, "needs top_p"),
        ({"seed": 1}, "seed is for selection sampled"),
        (
            {"selection": "sampled", "seed": 1, "logprob_step": None, "top_k": 65536},
            "at most 65535 draws",
        ),
    ],
)
def test_a_fingerprint_of_settings_that_do_not_go_together(settings, match, make):
    with pytest.raises(ValidationError, match=match):
        changed(make(vocab_size=2**17), **settings)
