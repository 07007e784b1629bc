"""A cache read with zarr-python, NumPy and json alone, as docs/format.md describes it."""

import hashlib
import json
import warnings

import numpy as np
import pytest
import zarr

from fusestore.cache.reader import open_cache
from fusestore.storage.store import Store


def read_plainly(folder):
    """Nothing of ours: what docs/format.md says, in a few lines."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group = dict(zarr.open_group(folder, mode="r").arrays())
    arrays = {name: array[:] for name, array in group.items()}
    values, encoding = arrays["logprobs"], group["logprobs"].attrs["encoding"]
    logprobs = values
    if encoding != "exact":
        absent, step = values == group["logprobs"].attrs["absent"], group["logprobs"].attrs["step"]
        numbers = values.astype(np.float64)
        if encoding == "grid-differences":
            numbers = numbers.cumsum(axis=1)
        logprobs = np.where(absent, -np.inf, -step * numbers).astype("f4")
    tail = arrays["tail"]
    if group["tail"].attrs["encoding"] == "grid":
        absent, step = tail == group["tail"].attrs["absent"], group["tail"].attrs["step"]
        tail = np.where(absent, -np.inf, -step * tail).astype("f4")
    numbers, encoding = arrays["ids"].astype(np.int64), group["ids"].attrs["encoding"]
    if encoding == "number-gaps":
        for column in range(2, numbers.shape[1]):
            gap = values[:, column] == 0
            numbers[gap, column] += numbers[gap, column - 1] + 1
    if encoding == "exact":
        ids = numbers
    else:
        order, classes = arrays["class_order"], arrays["token_class"][arrays["token_ids"]]
        head = order.shape[1]
        of_class = order[classes[:, None], np.minimum(numbers, head - 1)]
        ids = arrays["rank_to_id"][np.where(numbers < head, of_class, numbers)]
    return {
        "ids": np.where(np.isneginf(logprobs), 0, ids).astype("i4"),
        "logprobs": logprobs,
        "tail": tail,
        "label_logprob": arrays["label_logprob"],
        "token_ids": arrays["token_ids"],
        "end_offsets": arrays["end_offsets"],
        "document_offsets": arrays["document_offsets"],
    }


PROFILES = [
    ("compact", 1 / 16),
    ("compact", 0.1),
    ("lossless", None),
    ("fast", 1 / 16),
    ("fast", 0.1),
    ("fast", None),
]


@pytest.mark.parametrize("vocab_size", [50, 2**17 + 500])
@pytest.mark.parametrize(("profile", "step"), PROFILES)
def test_plain_zarr_gives_the_same_numbers(tmp_path, make, profile, step, vocab_size):
    capture = make((40, 0, 31), vocab_size, k=20, absent=0.3, profile=profile, logprob_step=step)
    capture.write(Store.open(tmp_path))
    cache = open_cache(tmp_path, "demo")
    rows, tokens, folder = cache[:], cache.tokens, tmp_path / "caches/demo"
    for name, values in read_plainly(folder).items():
        ours = getattr(rows, name) if hasattr(rows, name) else getattr(tokens, name)
        assert values.dtype == ours.dtype
        assert np.array_equal(values, ours, equal_nan=name == "label_logprob"), name
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert manifest["fingerprint"]["num_tokens"] == len(rows)


def test_the_checksums_are_as_described(tmp_path, capture):
    capture.write(Store.open(tmp_path))
    folder = tmp_path / "caches/demo"
    digests = {}
    for path in [folder / "manifest.json", folder / "fingerprint.json", *folder.glob("receipts/*")]:
        content = json.loads(path.read_bytes())
        checksum = content.pop("checksum")
        canonical = json.dumps(content, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
        assert hashlib.sha256(canonical.encode()).hexdigest() == checksum
        digests[path.stem] = checksum
        for name, record in content.get("files", {}).items():
            data = (folder / name).read_bytes()
            assert len(data) == record["num_bytes"]
            assert hashlib.sha256(data).hexdigest() == record["sha256"]
    lines = "".join(f"{digests[part]}\n" for part in ("tokens", "000000", "000001", "000002"))
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert manifest["content_digest"] == hashlib.sha256(lines.encode()).hexdigest()
    assert manifest["fingerprint_digest"] == digests["fingerprint"]
