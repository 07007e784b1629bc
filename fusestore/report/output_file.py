"""Where a plot or a page may be written."""

from __future__ import annotations

from fusestore.errors import InvalidInputError
from fusestore.storage.location import Location


def check_output_file(file: str, store: Location, what: str, content: str, suffix: str) -> None:
    """Check the name of a file that is about to be made.

    Args:
        file: its path or URL.
        store: where it must not lie.
        what: what it is called in messages.
        content: what that is.
        suffix: what its name ends with.

    Raises:
        InvalidInputError: its name ends otherwise, or it lies in the store.
    """
    if not file.endswith(suffix):
        raise InvalidInputError(
            f"The {what} is {content}, but the file is called {file}. Give a name that ends with "
            f"{suffix}."
        )
    location = Location.parse(file)
    if (
        location.is_local
        and store.is_local
        and location.path.resolve().is_relative_to(store.path.resolve())
    ):
        raise InvalidInputError(
            f"The {what} {file} lies in the store {store}, where every file belongs to an "
            "artifact. Give a file outside of it."
        )
