"""The store of the pages, and what blocks register is forgotten afterwards."""

from pathlib import Path

import pytest

from fusestore import plugins
from fusestore.capture.engines import engine_registry
from fusestore.fuse import strategies
from fusestore.losses import divergence_registry, divergences
from tests.docs.setups import rename_kept_store, setup_of
from tests.helpers.command import Command
from tests.helpers.converted_models import at_hand
from tests.helpers.made_once import made_once

# What is built in is registered before anything else is.
assert divergences


@pytest.fixture(scope="session")
def documented_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store `my.store` of the pages; not to be changed."""
    return made_once(tmp_path_factory, "documented", lambda folder: rename_kept_store(folder))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """`fusestore`, in this process."""
    return Command(capsys, monkeypatch)


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A home and registries of the test's own."""
    # What the session shares is made in the user's home, not in that of one test.
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    shared = setup_of(parameters.get("page", "")).shared
    converted = [request.getfixturevalue(name) for name in shared]
    monkeypatch.setenv("FUSESTORE_HOME", str(tmp_path / "home"))
    at_hand(*converted)
    for module, name in (
        (plugins, "_loaded"),
        (strategies, "_STRATEGIES"),
        (divergence_registry, "_ENTRIES"),
        (engine_registry, "_ENGINES"),
    ):
        monkeypatch.setattr(module, name, dict(getattr(module, name)))
