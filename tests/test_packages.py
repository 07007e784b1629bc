"""Files of installed packages, found without importing the packages."""

import sys
from pathlib import Path

import pytest

from fusestore.errors import NotFoundError
from fusestore.storage.packages import packaged_gguf, resolve_path, user_cache_folder


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of installed packages, first on the path, and a cache folder of its own."""
    monkeypatch.setenv("FUSESTORE_HOME", str(tmp_path / "home"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path / "site"


def install(site: Path, name: str, files: dict[str, bytes], requires: tuple[str, ...] = ()):
    """Lay out an installed distribution that raises when it is imported."""
    package = name.replace("-", "_")
    info = f"{package}-1.0.dist-info"
    content = {
        f"{package}/__init__.py": b"raise RuntimeError('was imported')",
        **{f"{package}/{path}": data for path, data in files.items()},
        f"{info}/METADATA": "\n".join(
            [
                "Metadata-Version: 2.1",
                f"Name: {name}",
                "Version: 1.0",
                *(f"Requires-Dist: {requirement}" for requirement in requires),
                "",
            ]
        ).encode(),
    }
    content[f"{info}/RECORD"] = "".join(
        f"{path},,\n" for path in [*content, f"{info}/RECORD"]
    ).encode()
    for path, data in content.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(data)


def test_ordinary_paths_are_left_as_they_are():
    for path in ("texts/*.txt", "s3://bucket/x", "C:/texts"):
        assert resolve_path(path) == path


def test_path_in_a_package(site):
    install(site, "some-speeches", {"data/1.txt": b"So be it."})
    path = resolve_path("package:some-speeches/data/*.txt")
    assert path == str(site / "some_speeches" / "data" / "*.txt")
    assert [file.read_text() for file in Path(path).parent.glob("*.txt")] == ["So be it."]
    assert "some_speeches" not in sys.modules


def test_path_in_a_package_that_is_not_there():
    with pytest.raises(NotFoundError, match="pip install no-such-speeches"):
        resolve_path("package:no-such-speeches/data/*.txt")


def test_path_in_a_package_without_a_folder(site):
    install(site, "flat", {})
    (site / "flat-1.0.dist-info" / "RECORD").write_text("flat.py,,\n")
    with pytest.raises(NotFoundError, match="no folder flat"):
        resolve_path("package:flat/data")


def test_whole_gguf_is_used_where_it_lies(site):
    install(site, "one-model", {"weights.gguf": b"GGUF"})
    assert packaged_gguf("one-model") == site / "one_model" / "weights.gguf"


def test_parts_are_put_together_once(site):
    install(
        site, "cut-model", {"w.gguf.part00": b"one,"}, ("cut-model-rest", "numpy; extra == 'x'")
    )
    install(site, "cut-model-rest", {"w.gguf.part02": b"three", "w.gguf.part01": b"two,"})
    path = packaged_gguf("cut-model")
    assert path.name == "w.gguf"
    assert path.is_relative_to(user_cache_folder())
    assert path.read_bytes() == b"one,two,three"
    written = path.stat().st_mtime_ns
    assert packaged_gguf("cut-model") == path
    assert path.stat().st_mtime_ns == written
    assert [file.name for file in path.parent.iterdir()] == ["w.gguf"]


def test_package_without_gguf(site):
    install(site, "no-model", {"readme.txt": b""})
    with pytest.raises(NotFoundError, match="no-model holds no GGUF file"):
        packaged_gguf("no-model")


def test_package_whose_parts_are_not_installed(site):
    install(site, "half-model", {"w.gguf.part00": b"one"}, ("half-model-rest",))
    with pytest.raises(NotFoundError, match="half-model-rest is not installed"):
        packaged_gguf("half-model")


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("FUSESTORE_HOME", str(tmp_path))
    assert user_cache_folder() == tmp_path
    monkeypatch.delenv("FUSESTORE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache_folder() == tmp_path / ".cache" / "fusestore"
