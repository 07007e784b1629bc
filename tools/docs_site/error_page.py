"""Reference of the errors: each class of fusestore.errors, and when it is raised."""

from __future__ import annotations

import inspect

from fusestore import errors

from .tables import table

PAGE = "reference/errors.md"


def error_classes() -> list[type[errors.FusestoreError]]:
    """Every error, in the order of the module."""
    found = [each for each in vars(errors).values() if inspect.isclass(each)]
    return [each for each in found if issubclass(each, errors.FusestoreError)]


def error_page() -> str:
    """The Markdown of the page."""
    rows = [
        (
            f'<span id="fusestore.errors.{each.__name__}"></span>`{each.__name__}`',
            ", ".join(f"`{base.__name__}`" for base in each.__bases__),
            " ".join((each.__doc__ or "").split()),
        )
        for each in error_classes()
    ]
    return "\n\n".join(
        [
            "# Which errors does fusestore raise?",
            "Every error that fusestore raises on purpose is a `fs.FusestoreError` and the builtin "
            "that fits: catch either. A message names what was found, what was expected, and what "
            "to do next. The command line prints the message and exits with code 1, or 2 where the "
            "command was called in a wrong way; `fusestore --debug` shows the traceback too.",
            "```python\nimport fusestore as fs\nfrom fusestore.errors import NotFoundError\n\n"
            'try:\n    fs.open_store("no.store").open_cache("gemma3")\n'
            "except NotFoundError as error:  # a FileNotFoundError too\n    print(error)\n```",
            table(["Error", "Is also a", "Raised when"], rows),
            "Import them from `fusestore.errors`. What each function raises is in the "
            "[Python reference](python/index.md).",
        ]
    )
