"""The sdist holds the repository, the wheel what runs; both are the same bytes wherever built."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from fusestore.version import __version__
from tools.build_release import absolute_links, build_release

ROOT = Path(__file__).parent.parent
MOST_BYTES = 2_000_000
"""Bound of the wheel; 1.2 MB when this was written."""

PLACES = {
    "fusestore": "fusestore",
    "cli": "fusestore_cli",
    "examples": "fusestore/examples",
    "schemas": "fusestore/schemas",
}
"""Folders of the repository that the wheel has, and where."""

pytestmark = pytest.mark.skipif(
    not (ROOT / ".git").exists() or shutil.which("git") is None, reason="builds what is committed"
)


def committed() -> set[str]:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-tree", "-r", "--name-only", "-z", "HEAD"],
        check=True,
        capture_output=True,
        text=True,
    )
    return set(listed.stdout.split("\0")) - {""}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    sdist, wheel = build_release(tmp_path_factory.mktemp("dist"))
    return sdist, wheel


@pytest.mark.slow
def test_the_sdist_has_every_file(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as tar:
        names = {
            str(PurePosixPath(*PurePosixPath(member.name).parts[1:]))
            for member in tar.getmembers()
            if member.isfile()
        }
    made = {name for name in names if ".egg-info/" in name} | {"PKG-INFO", "setup.cfg"}
    assert names - made == committed()


@pytest.mark.slow
def test_the_wheel_has_every_file_that_is_used(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        information = {name.rpartition(".dist-info/")[2] for name in archive.namelist()} - names
    expected = set()
    for name in committed():
        folder, _, rest = name.partition("/")
        if rest and folder in PLACES:
            expected.add(f"{PLACES[folder]}/{rest}")
    assert names == expected
    assert {"licenses/LICENSE", "METADATA", "entry_points.txt"} <= information
    assert "fusestore/py.typed" in names
    assert built[1].name == f"fusestore-{__version__}-py3-none-any.whl"
    assert built[1].stat().st_size < MOST_BYTES


@pytest.mark.slow
def test_what_is_read_is_found_in_the_wheel(built: tuple[Path, Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        archive.extractall(tmp_path)  # noqa: S202 - our own
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from importlib.resources import files
assert (files("fusestore.schemas") / "cache.json").read_text().startswith("{{")
assert "accelerate" in (files("fusestore.examples") / "accelerate_loop.py").read_text()
assert "[models.student]" in (files("fusestore.workflows.demo") / "demo.toml").read_text()
"""
    subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True)


@pytest.mark.slow
def test_another_time_and_folder_give_the_same_bytes(
    built: tuple[Path, Path], tmp_path: Path
) -> None:
    clone = tmp_path / "another" / "folder"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    for path, again in zip(built, build_release(tmp_path / "dist", root=clone), strict=True):
        assert path.name == again.name
        assert path.read_bytes() == again.read_bytes(), path.name


def test_links_of_the_readme_become_addresses() -> None:
    text = "[a](docs/a.md#b) ![i](docs/i.png) [w](https://x.org/y) [h](#here) [f](docs/how-to/)"
    assert absolute_links(text, "https://host/me/it", "v1") == (
        "[a](https://host/me/it/blob/v1/docs/a.md#b) ![i](https://host/me/it/raw/v1/docs/i.png) "
        "[w](https://x.org/y) [h](#here) [f](https://host/me/it/tree/v1/docs/how-to/)"
    )
