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
    logprobs, tail = group["logprobs"], group["tail"]
    values, tail_values = logprobs[:], tail[:]
    if logprobs.attrs["encoding"] == "grid-differences":
        absent = values == logprobs.attrs["absent"]
        numbers = values.astype(np.float64).cumsum(axis=1)
        values = np.where(absent, -np.inf, -logprobs.attrs["step"] * numbers).astype("f4")
        absent = tail_values == tail.attrs["absent"]
        tail_values = np.where(absent, -np.inf, -tail.attrs["step"] * tail_values).astype("f4")
    return {
        "ids": group["rank_to_id"][:][group["ids"][:]],
        "logprobs": values,
        "tail": tail_values,
        "label_logprob": group["label_logprob"][:],
        "token_ids": group["token_ids"][:],
        "end_offsets": group["end_offsets"][:],
        "document_offsets": group["document_offsets"][:],
    }


@pytest.mark.parametrize("step", [None, 1 / 16, 0.1])
def test_plain_zarr_gives_the_same_numbers(tmp_path, make, step):
    capture = make(absent=0.7, logprob_step=step)
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
