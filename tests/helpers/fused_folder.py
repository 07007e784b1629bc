"""Makes fused datasets of plain arrays, as zarr-python writes them."""

from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from fusestore.store.manifest import canonical_json, digest_bytes
from fusestore.store.receipts import FileRecord


def random_arrays(num_tokens, k=4, vocab_size=100, seed=0, document_length=23):
    rng = np.random.default_rng(seed)
    document = (np.arange(num_tokens) // document_length).astype(np.int32)
    input_ids = rng.integers(0, vocab_size, num_tokens).astype(np.int32)
    next_ids = np.append(input_ids[1:], -100).astype(np.int32)[:num_tokens]
    next_ids[:-1][document[1:] != document[:-1]] = -100
    probs = np.sort(rng.dirichlet(np.ones(k + 1), num_tokens))[:, ::-1]
    tail = probs[:, k].copy()
    tail[::5] += probs[::5, k - 1]
    ids = np.argsort(rng.random((num_tokens, vocab_size)), 1)[:, :k].astype(np.int32)
    logprobs = np.log(probs[:, :k]).astype(np.float32)
    ids[::5, -1] = 0
    logprobs[::5, -1] = -np.inf
    return {
        "input_ids": input_ids,
        "next_ids": next_ids,
        "ids": ids,
        "logprobs": logprobs,
        "tail": np.log(tail).astype(np.float32),
        "kind": rng.integers(0, 3, num_tokens).astype(np.uint8),
        "source": rng.integers(-1, 2, num_tokens).astype(np.int16),
        "document": document,
        "known": rng.random(num_tokens, np.float32),
    }


def write_fused(
    folder: Path,
    arrays,
    *,
    window_length,
    chunk_rows,
    vocab_size=100,
    sampled=False,
    target="1" * 64,
):
    group = zarr.create_group(store=folder)
    num_tokens, top_k = arrays["ids"].shape
    chunk_rows = max(1, min(chunk_rows, num_tokens))
    for name, values in arrays.items():
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=(chunk_rows, *values.shape[1:]),
            serializer=BytesCodec(endian="little"),
            compressors=[Crc32cCodec()],
            filters=[],
            config={"write_empty_chunks": True},
        )
        array[:] = values
    recipe = {
        "window_length": window_length,
        "packing": "stream",
        "target": target,
        "top_k": top_k,
        "rows_per_shard": chunk_rows,
    }
    plan = {
        "recipe": recipe,
        "vocab_size": vocab_size,
        "sampled": sampled,
        "num_tokens": num_tokens,
    }
    files = {
        path.relative_to(folder).as_posix(): FileRecord.of(path.read_bytes()).model_dump()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = {"format_version": 1, "plan": plan, "files": files}
    checksum = digest_bytes(canonical_json(manifest))
    (folder / "manifest.json").write_bytes(canonical_json({**manifest, "checksum": checksum}))
    return folder
