"""`tf.train.Example`: named lists of numbers in protobuf's encoding, read without TensorFlow.

The messages, by tensorflow/core/example: an Example has Features in field 1; these a map of names
to Feature in field 1; a Feature one of bytes (1), float (2, packed) and int64 (3, packed) lists.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fusestore.errors import InvalidInputError, MissingDependencyError


def parse_example(place: str, data: bytes) -> dict[str, npt.NDArray[Any]]:
    """The lists of numbers of an Example, float32 or int64, by name; lists of bytes are left out.

    Raises:
        InvalidInputError: the data is no Example; names the place.
        MissingDependencyError: protobuf is not installed.
    """
    message_type, decode_error = example_type()
    message = message_type()
    try:
        message.ParseFromString(data)
    except (decode_error, RecursionError) as error:
        raise InvalidInputError(f"{place} is no tf.train.Example: {error}.") from error
    found: dict[str, npt.NDArray[Any]] = {}
    for name, feature in message.features.feature.items():
        if feature.WhichOneof("kind") == "float_list":
            found[name] = np.array(feature.float_list.value, np.float32)
        elif feature.WhichOneof("kind") == "int64_list":
            found[name] = np.array(feature.int64_list.value, np.int64)
    return found


@cache
def example_type() -> tuple[Any, type[Exception]]:
    """The class of the message, and the error of what is no message.

    Raises:
        MissingDependencyError: protobuf is not installed.
    """
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise MissingDependencyError(
            "tf.train.Example is read by the package protobuf, which is not installed: "
            "pip install 'fusestore[maxtext]'."
        ) from error
    field = descriptor_pb2.FieldDescriptorProto
    # A package of its own, so that TensorFlow may be imported too.
    file = descriptor_pb2.FileDescriptorProto(
        name="fusestore/example.proto", package="fusestore.example", syntax="proto3"
    )

    def message(name: str) -> Any:  # noqa: ANN401 - a descriptor
        return file.message_type.add(name=name)

    def add(parent: Any, name: str, number: int, kind: int, **more: Any) -> None:  # noqa: ANN401
        parent.field.add(
            name=name, number=number, type=kind, **{"label": field.LABEL_OPTIONAL, **more}
        )

    for name, kind in (
        ("BytesList", field.TYPE_BYTES),
        ("FloatList", field.TYPE_FLOAT),
        ("Int64List", field.TYPE_INT64),
    ):
        add(message(name), "value", 1, kind, label=field.LABEL_REPEATED)
    feature = message("Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("BytesList", "FloatList", "Int64List"), start=1):
        lower = name.replace("List", "_list").lower()
        of_list = {"type_name": f".{file.package}.{name}", "oneof_index": 0}
        add(feature, lower, number, field.TYPE_MESSAGE, **of_list)
    features = message("Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    add(entry, "key", 1, field.TYPE_STRING)
    add(entry, "value", 2, field.TYPE_MESSAGE, type_name=f".{file.package}.Feature")
    of_map = {
        "type_name": f".{file.package}.Features.FeatureEntry",
        "label": field.LABEL_REPEATED,
    }
    add(features, "feature", 1, field.TYPE_MESSAGE, **of_map)
    of_features = f".{file.package}.Features"
    add(message("Example"), "features", 1, field.TYPE_MESSAGE, type_name=of_features)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindMessageTypeByName(f"{file.package}.Example")
    return message_factory.GetMessageClass(found), DecodeError
