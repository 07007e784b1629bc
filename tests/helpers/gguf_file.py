"""GGUF files of tokenizers, as llama.cpp's conversion writes them, without weights."""

from __future__ import annotations

import json
from pathlib import Path

from gguf import GGUFWriter, TokenType


def write_gguf(
    path: Path, backend, pre: str | None, *, unused: int = 0, kinds=None, roles=None, **flags
) -> Path:
    """Write a `tokenizers.Tokenizer` of byte pairs as a GGUF file.

    Args:
        path: the file.
        backend: the tokenizer; its added tokens become control or user-defined tokens.
        pre: the name of its pre-tokenizer; None leaves it out.
        unused: ids without a token to add at the end.
        kinds: types of ids that are not as above.
        roles: ids by role (`bos`, `eos`, `unk`, `pad`).
        flags: `add_bos`, `add_eos`, `chat_template`.
    """
    content = json.loads(backend.to_str())
    added = {token["content"]: token for token in content["added_tokens"]}
    by_id = sorted((id_, token) for token, id_ in backend.get_vocab(with_added_tokens=True).items())
    tokens = [token for _, token in by_id]
    types = [
        TokenType.NORMAL
        if token not in added
        else TokenType.CONTROL
        if added[token]["special"]
        else TokenType.USER_DEFINED
        for token in tokens
    ]
    for token_id, kind in (kinds or {}).items():
        types[token_id] = kind
    tokens += [f"[PAD{len(tokens) + i}]" for i in range(unused)]
    types += [TokenType.UNUSED] * unused
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(merge) for merge in content["model"]["merges"]])
    for role, token_id in (roles or {}).items():
        getattr(writer, f"add_{role}_token_id")(token_id)
    if "add_bos" in flags:
        writer.add_add_bos_token(flags["add_bos"])
    if "add_eos" in flags:
        writer.add_add_eos_token(flags["add_eos"])
    if "chat_template" in flags:
        writer.add_chat_template(flags["chat_template"])
    return _written(writer, path)


def write_sentencepiece_gguf(path: Path, processor, *, adds_space: bool) -> Path:
    """Write a `sentencepiece.SentencePieceProcessor` of byte pairs as a GGUF file."""
    ids = range(processor.get_piece_size())
    kinds = (
        (processor.is_unknown, TokenType.UNKNOWN),
        (processor.is_control, TokenType.CONTROL),
        (processor.is_byte, TokenType.BYTE),
    )
    types = [next((kind for is_kind, kind in kinds if is_kind(i)), TokenType.NORMAL) for i in ids]
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([processor.id_to_piece(i) for i in ids])
    writer.add_token_scores([processor.get_score(i) for i in ids])
    writer.add_token_types(types)
    writer.add_add_space_prefix(adds_space)
    writer.add_bos_token_id(processor.bos_id())
    writer.add_eos_token_id(processor.eos_id())
    writer.add_unk_token_id(processor.unk_id())
    return _written(writer, path)


def _written(writer: GGUFWriter, path: Path) -> Path:
    # transformers reads the shape of the model even for its tokenizer alone.
    writer.add_context_length(128)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
