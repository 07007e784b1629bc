"""The arrays of a corpus's tokens in one tokenizer."""

from __future__ import annotations

from fusestore.store.arrays import ArraySpec

TOKENS_PER_CHUNK = 8_192
TOKENS_PER_SHARD = 1_048_576


def token_arrays(num_tokens: int, num_documents: int) -> tuple[ArraySpec, ArraySpec, ArraySpec]:
    """`token_ids`, `end_offsets` and `document_offsets` of T tokens of D documents."""
    ids, ends = (
        ArraySpec(
            name,
            (num_tokens,),
            "int32",
            (TOKENS_PER_CHUNK,),
            (TOKENS_PER_SHARD,),
            attributes={"content": content},
            dimension_names=("token",),
        )
        for name, content in (
            ("token_ids", "token ids of the documents"),
            ("end_offsets", "byte offset in its document where a token ends"),
        )
    )
    offsets = ArraySpec(
        "document_offsets",
        (num_documents + 1,),
        "int64",
        (num_documents + 1,),
        None,
        attributes={"content": "document i is tokens [value[i], value[i + 1])"},
        dimension_names=("document",),
    )
    return ids, ends, offsets
