"""Plugins: modules that register strategies, divergences or artifact kinds when they are imported.

A plugin is named in one of four ways: `fusestore --plugin MODULE`, the environment variable
`FUSESTORE_PLUGINS` (names, separated by commas), an entry point of the group `fusestore.plugins`
in an installed package, or `load_plugins` in Python. A module that registers something without
being named is recorded as if it had been.

Each helper process has its own registry. It receives `plugin_names()` of the process that
started it, and passes them to `expect_plugins`. A registry that lacks a name calls
`load_expected_plugins` before it fails. So a process imports plugins only when it needs them.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable

from fusestore.errors import InvalidInputError, NotFoundError

ENVIRONMENT_VARIABLE = "FUSESTORE_PLUGINS"
ENTRY_POINT_GROUP = "fusestore.plugins"

_SCRIPTS = frozenset({"__main__", "__mp_main__"})

# Dictionaries keep the order: a later plugin may build on an earlier plugin.
_loaded: dict[str, None] = {}
_expected: dict[str, None] = {}
_entry_points_loaded = False


def load_plugins(names: Iterable[str]) -> None:
    """Import plugins that are not imported yet; the current folder is searched last.

    Raises:
        NotFoundError: there is no such module.
        InvalidInputError: the module raises an error when it is imported.
    """
    for name in names:
        if name not in _loaded:
            _import(name)
            _loaded[name] = None


def loaded_plugins() -> tuple[str, ...]:
    """Modules that this process imported as plugins, or that registered something in it."""
    return tuple(_loaded)


def plugin_names() -> tuple[str, ...]:
    """Modules that a helper process may need: the loaded and the expected ones."""
    return tuple({**_loaded, **_expected})


def record(definition: object) -> None:
    """Remember the module of a registered function or class, so that helper processes import it.

    A script has no name that another process could import. `multiprocessing` imports the main
    script again in each process that it spawns, so a script's registrations reach those anyway.
    """
    module = getattr(definition, "__module__", None)
    if module and module not in _SCRIPTS and module.partition(".")[0] != "fusestore":
        _loaded[module] = None


def expect_plugins(names: Iterable[str]) -> None:
    """Note the plugins that `load_expected_plugins` is to import; called in a helper process."""
    _expected.update(dict.fromkeys(name for name in names if name not in _loaded))


def load_expected_plugins() -> list[str]:
    """Import the expected plugins, those of the environment variable, and all entry points.

    Returns:
        One sentence for each plugin that could not be imported.
    """
    problems = []
    for name in [*environment_plugins(), *_expected]:
        try:
            load_plugins([name])
        except (NotFoundError, InvalidInputError) as error:
            problems.append(str(error))
        _expected.pop(name, None)
    try:
        load_entry_points()
    except InvalidInputError as error:
        problems.append(str(error))
    return problems


def environment_plugins() -> list[str]:
    """Names in the environment variable `FUSESTORE_PLUGINS`."""
    names = os.environ.get(ENVIRONMENT_VARIABLE, "").split(",")
    return [name.strip() for name in names if name.strip()]


def load_entry_points() -> None:
    """Import the modules that installed packages list as entry points `fusestore.plugins`.

    Raises:
        InvalidInputError: a module cannot be imported.
    """
    global _entry_points_loaded
    if _entry_points_loaded:
        return
    # Takes 10 ms to import.
    from importlib.metadata import entry_points

    for point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            point.load()
        except Exception as error:
            package = point.dist.name if point.dist else "an installed package"
            raise InvalidInputError(
                f"The plugin {point.value!r} of {package} could not be imported: "
                f"{type(error).__name__}: {error}. Update or uninstall {package}."
            ) from error
    _entry_points_loaded = True


def _import(name: str) -> None:
    try:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            folder = os.getcwd()  # noqa: PTH109 - sys.path holds strings
            if not _is_plugin(error.name, name) or {"", folder} & set(sys.path):
                raise
            # Last, so that no file of the current folder hides an installed module.
            sys.path.append(folder)
            importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not _is_plugin(error.name, name):
            raise InvalidInputError(_failure(name, error)) from error
        raise NotFoundError(
            f"There is no module {name!r} to import as a plugin. Install its package, or run the "
            "command in the folder that holds it. A plugin is named as in `import`, without .py."
        ) from error
    except Exception as error:
        raise InvalidInputError(_failure(name, error)) from error


def _failure(name: str, error: Exception) -> str:
    return f"The plugin {name!r} could not be imported: {type(error).__name__}: {error}."


def _is_plugin(missing: str | None, name: str) -> bool:
    """Whether the missing module is the plugin itself or a package around it."""
    return missing is not None and f"{name}.".startswith(f"{missing}.")
