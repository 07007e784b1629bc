"""GGUF files in parts, `NAME-00001-of-00003.gguf`: found, checked and joined.

transformers reads one file. So the parts are joined into a temporary one, a tensor at a time.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fusestore.errors import InvalidInputError, NotFoundError
from fusestore.models.weight_files import refuse_lfs_pointer
from fusestore.models.weight_proof import named_tensors
from fusestore.storage.gguf_file import gguf_field, open_gguf
from fusestore.storage.memory import file_digest
from fusestore.storage.packages import user_cache_folder
from fusestore.storage.replace import scratch_folder
from fusestore.store.manifest import digest_bytes

PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
"""What llama.cpp calls a part."""


def gguf_parts(gguf: Path) -> list[Path]:
    """All parts of a GGUF file, in order, by its name alone; or the file itself."""
    match = PART_NAME.fullmatch(gguf.name)
    if match is None:
        return [gguf]
    count = int(match["count"])
    names = [f"{match['stem']}-{n:05d}-of-{count:05d}.gguf" for n in range(1, count + 1)]
    missing = [name for name in names if not (gguf.parent / name).is_file()]
    if missing:
        raise NotFoundError(
            f"{gguf} is part {int(match['number'])} of {count}, but {named_tensors(missing)} "
            f"{'are' if len(missing) > 1 else 'is'} not in its folder. Download all parts into "
            "one folder, and give any of them."
        )
    return [gguf.parent / name for name in names]


def gguf_digest(gguf: Path) -> str:
    """SHA-256 over the bytes of a GGUF file, hexadecimal; of a file in parts over all of them."""
    parts = gguf_parts(gguf.absolute())
    return digest_bytes(" ".join(["gguf", *map(file_digest, parts)]).encode())


@contextlib.contextmanager
def one_gguf(parts: Sequence[Path]) -> Iterator[tuple[Any, Path]]:
    """One file with the tensors of all parts, and its reader: transformers does not read parts."""
    for path in parts:
        refuse_lfs_pointer(path)
    readers = [open_gguf(path) for path in parts]
    for number, (path, reader) in enumerate(zip(parts, readers, strict=True)):
        own = (gguf_field(reader, "split.no") or 0, gguf_field(reader, "split.count") or 1)
        if own != (number, len(parts)):
            raise InvalidInputError(
                f"{path} says that it is part {own[0] + 1} of {own[1]}, but its name says part "
                f"{number + 1} of {len(parts)}. Put all parts into one folder under the names that "
                f"they were published with (…-00001-of-{own[1]:05d}.gguf)."
            )
    expected = gguf_field(readers[0], "split.tensors.count")
    count = sum(len(reader.tensors) for reader in readers)
    if expected is not None and expected != count:
        raise InvalidInputError(
            f"{parts[0]} says that its parts hold {expected:,} tensors, but they hold {count:,}. "
            "Download the parts again."
        )
    if len(parts) == 1:
        yield readers[0], parts[0]
        return
    folder = user_cache_folder() / "gguf"
    with scratch_folder("whole", folder) as temporary:
        whole = temporary / "whole.gguf"
        _join(readers, whole)
        yield open_gguf(whole), whole


def _join(readers: Sequence[Any], target: Path) -> None:
    """Write the metadata of the first part and the tensors of all, one tensor at a time."""
    from gguf import GGUFValueType, GGUFWriter

    first = readers[0]
    writer = GGUFWriter(
        target, gguf_field(first, "general.architecture"), endianess=first.endianess
    )
    writer.data_alignment = first.alignment
    for field in first.fields.values():
        if field.name.startswith(("GGUF.", "split.")) or field.name == "general.architecture":
            continue
        kind = field.types[0]
        sub_type = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=sub_type)
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    for tensor in tensors:
        data = tensor.data
        writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.data, tensor_endianess=first.endianess)
    writer.close()
