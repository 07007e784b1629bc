"""Storage options: one definition for each storage, wherever the values come from.

Python, a fusion.toml, the command line and the environment use the same names and types. Text is
read as JSON where the option takes something else than text: `false`, `4`, `{"name": "value"}`.
Values may be secret, so no message shows one.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Annotated, Any, Self, get_args, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from fusestore.errors import InvalidInputError, did_you_mean

Pairs = tuple[tuple[str, str], ...]
"""Names and values as text, sorted by name: hashable, and read back by `StorageOptions.of`."""

S3_SCHEMES = ("s3://", "s3a://")
HTTP_SCHEMES = ("http://", "https://")

_Seconds = Annotated[float | None, Field(gt=0)]


class StorageOptions(BaseModel):
    """Validated options of one storage."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        protected_namespaces=(),
        arbitrary_types_allowed=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _read_text(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, str) and info.field_name is not None:
            kind: Any = cls.model_fields[info.field_name].annotation
            try:
                return TypeAdapter(kind).validate_json(value, strict=True)
            except ValidationError:
                # Text of a text option is no JSON of the right type, and stays as it is.
                return _table(value) or value
        return value

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, options: object) -> object:
        for name in options if isinstance(options, Mapping) else ():
            if name not in cls.model_fields:
                known = ", ".join(cls.model_fields)
                hint = f"{name!r} is not one of them. {did_you_mean(str(name), cls.model_fields)}"
                raise ValueError(f"{hint.rstrip()} They are {known}")
        return options

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.model_fields_set)})"

    @classmethod
    def of(cls, options: Mapping[str, object], url: str) -> Self:
        """Validate options.

        Args:
            options: by name.
            url: of the storage, for messages.

        Raises:
            InvalidInputError: an unknown name, or a value of another type.
        """
        try:
            return cls.model_validate(dict(options))
        except ValidationError as error:
            problems = "; ".join(
                ": ".join([*map(str, item["loc"]), item["msg"].removeprefix("Value error, ")])
                for item in error.errors()
            )
            storage = f"{url.partition('://')[0]}://"
            # The cause would show the values.
            raise InvalidInputError(f"Storage options of {storage}: {problems}.") from None

    def pairs(self) -> Pairs:
        """The options that were given, as text.

        Raises:
            InvalidInputError: a value that no text can express, so that no worker can receive it.
        """
        given = self.model_dump(exclude_unset=True)
        try:
            return tuple((name, _text(given[name])) for name in sorted(given))
        except TypeError as error:
            raise InvalidInputError(
                f"Storage options are text, numbers, true, false and tables: {error}."
            ) from error


class S3ClientOptions(StorageOptions):
    """The keys of s3fs's table `client_kwargs` that apply here."""

    region_name: str | None = None
    endpoint_url: str | None = None


class S3Options(StorageOptions):
    """Options of S3; the names are s3fs's. Unset ones come from the environment, see `s3`."""

    key: str | None = None
    secret: str | None = None
    token: str | None = None
    endpoint_url: str | None = None
    profile: str | None = None
    region: str | None = None
    anon: bool = False
    requester_pays: bool = False
    max_concurrency: int = Field(default=1, ge=1)
    connect_timeout: _Seconds = None
    read_timeout: _Seconds = None
    client_kwargs: S3ClientOptions = S3ClientOptions()


class HttpOptions(StorageOptions):
    """Options of HTTP servers; `headers` go with every request."""

    headers: dict[str, str] = Field(default_factory=dict)
    connect_timeout: _Seconds = None
    read_timeout: _Seconds = None


def options_class(url: str) -> type[StorageOptions]:
    """The options that the storage of a URL takes.

    Raises:
        InvalidInputError: no installed filesystem serves the URL.
    """
    if url.startswith(S3_SCHEMES):
        return S3Options
    if url.startswith(HTTP_SCHEMES):
        return HttpOptions
    return _filesystem_options(url.partition("://")[0])


def environment_options(kind: type[StorageOptions], scheme: str) -> dict[str, Any]:
    """Options from fsspec's configuration: variables such as FSSPEC_S3_ANON, and its files.

    Names that only other libraries know are left out.
    """
    from fsspec.config import conf

    return {
        name: value for name, value in conf.get(scheme, {}).items() if name in kind.model_fields
    }


def filesystem_class(protocol: str) -> Any:  # noqa: ANN401 - fsspec is untyped
    """The fsspec filesystem of a protocol.

    Raises:
        InvalidInputError: there is none, or its package is not installed.
    """
    import fsspec

    try:
        return fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        raise InvalidInputError(
            f"{protocol}:// is not a storage that fusestore can open ({error}). "
            "Use a local path, s3://, or install the fsspec package for it."
        ) from error


def _filesystem_options(protocol: str) -> type[StorageOptions]:
    """The options that the constructors of an fsspec filesystem name."""
    fields: dict[str, Any] = {}
    for name, kind in _parameters(filesystem_class(protocol)):
        fields.setdefault(name, (kind, None))
    return create_model(f"{protocol.title()}Options", __base__=StorageOptions, **fields)


def _parameters(filesystem: type) -> Iterator[tuple[str, Any]]:
    from fsspec.dircache import DirCache

    # The base class passes its options on to the cache of listings.
    for cls in (*filesystem.__mro__, DirCache):
        constructor = vars(cls).get("__init__")
        if not inspect.isfunction(constructor):
            continue
        hints: dict[str, Any] = {}
        with contextlib.suppress(NameError, TypeError, AttributeError):
            hints = get_type_hints(constructor)
        for name, parameter in list(inspect.signature(constructor).parameters.items())[1:]:
            named = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if named and not name.startswith("_") and name not in ("asynchronous", "loop"):
                yield name, _plain(hints.get(name), parameter.default)
    yield "skip_instance_cache", bool


def _plain(hint: Any, default: object) -> Any:  # noqa: ANN401 - any type
    """A type of text, numbers and tables; anything where the signature says no such type."""
    if hint is not None and set(get_args(hint) or [hint]) <= {str, int, float, bool, NoneType}:
        return hint
    return str if isinstance(default, str) else Any


def _table(text: str) -> object:
    """The JSON table that a text is; None if it is none."""
    with contextlib.suppress(ValueError):
        content = json.loads(text)
        return content if isinstance(content, dict) else None
    return None


def _text(value: object) -> str:
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:
            return value
    return json.dumps(value, sort_keys=True)
