"""What Windows lacks is not needed to import fusestore, nor by what can run without it.

These tests take away what Windows lacks; they do not run on it.
"""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fusestore.cache.manifest import Fingerprint
from fusestore.data.streaming.streaming_dataset import StreamingFusedDataset
from fusestore.errors import AlreadyExistsError, InvalidInputError, UnsupportedPlatformError
from fusestore.storage.foreign_names import listed_inside
from fusestore.storage.location import Location
from fusestore.storage.publish import is_running, publish, publish_new
from fusestore.storage.replace import replaced_file, replaced_folder
from fusestore.store.fingerprints import write_fingerprint
from fusestore.store.layout import Store
from fusestore.workflows.sharing import copy_artifacts
from tests.helpers.source_files import parsed
from tests.helpers.tiny_job import hashes

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "fusestore").rglob("*.py"), *(ROOT / "cli").rglob("*.py")])
KEPT = ROOT / "tests/kept_store/format-1/store"

POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
OS_NAMES = """
O_CLOEXEC O_DIRECT O_DIRECTORY O_NOFOLLOW O_NONBLOCK chown confstr fchmod fchown fork forkpty
getegid geteuid getgid getloadavg getpgid getuid kill killpg mkfifo nice posix_fadvise
posix_fallocate pread preadv pwrite pwritev register_at_fork sched_getaffinity sched_setaffinity
setpgid setsid setuid statvfs sync sysconf uname wait wait3 wait4
"""
POSIX_NAMES = {
    "os": set(OS_NAMES.split()),
    "signal": {"SIGALRM", "SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "pause", "setitimer"},
    "select": {"epoll", "kqueue", "poll"},
    "socket": {"AF_UNIX"},
}
TEXT_IO = {"read_text", "write_text"}
ASKED_FOR = {
    ("cache_folder.py", "os.posix_fallocate"),
    ("private_folder.py", "os.geteuid"),
    ("publish.py", "os.register_at_fork"),
    ("private_folder.py", "os.getegid"),
    ("worker_process.py", "os.sched_getaffinity"),
}
"""Used only where `hasattr` says that it is there."""


def test_nothing_of_posix_is_imported_with_a_module():
    for path in SOURCES:
        nodes = parsed(path)
        inside = {
            id(node)
            for function in nodes
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in ast.walk(function)
        }
        for node in nodes:
            if id(node) not in inside and isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names}
                names |= {node.module} if isinstance(node, ast.ImportFrom) else set()
                assert not names & POSIX_MODULES, path


def test_no_name_of_posix_is_used():
    used = {
        (path.name, f"{node.value.id}.{node.attr}")
        for path in SOURCES
        for node in parsed(path)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.attr in POSIX_NAMES.get(node.value.id, ())
    }
    assert used == ASKED_FOR


def test_text_files_have_a_stated_encoding():
    """Windows reads and writes text as cp1252 unless told otherwise."""
    for path in SOURCES:
        for node in parsed(path):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                stated = {keyword.arg for keyword in node.keywords}
                assert node.func.attr not in TEXT_IO or "encoding" in stated, path


def test_a_store_is_listed_and_copied_without_what_windows_lacks(tmp_path):
    code = f"""
import sys
import psutil  # has a part for each system
for module in {POSIX_MODULES - {"posix"}!r}:
    sys.modules[module] = None
from fusestore_cli.app import main
main()
"""
    (tmp_path / "cache").mkdir()
    for arguments in (["ls", "-s", KEPT], ["push", "--all", "-s", KEPT, "--to", tmp_path / "copy"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "FUSESTORE_HOME": str(tmp_path / "cache")},
        )
        assert done.returncode == 0, done.stderr
        assert "cache/small" in done.stdout
    for folder in ("caches", "models"):
        copied = hashes(Location.parse(tmp_path / "copy" / folder))
        assert copied == hashes(Location.parse(KEPT / folder))


def test_folders_are_not_opened_on_windows(tmp_path, monkeypatch):
    def refuse_folders(path, *arguments, **options):
        assert not Path(path).is_dir(), "Windows opens no folder"
        return open_file(path, *arguments, **options)

    open_file = os.open
    monkeypatch.setattr(os, "open", refuse_folders)
    monkeypatch.setattr(sys, "platform", "win32")
    publish(Location.parse(tmp_path / "a/x"), b"1")
    publish_new(Location.parse(tmp_path / "a/y"), b"2")
    with replaced_file(tmp_path / "a/x") as file:
        file.write_bytes(b"3")
    with replaced_folder(tmp_path / "b") as folder:
        (folder / "z").write_bytes(b"4")
    monkeypatch.undo()
    found = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"x": b"3", "y": b"2", "z": b"4"}


def test_a_stream_says_that_windows_cannot(tmp_path, monkeypatch):
    remote = Store.open("memory://windows.store")
    copy_artifacts(Store.open(KEPT), remote, ["fused/mince"])
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(UnsupportedPlatformError, match=r"Windows cannot stream.*`fusestore pull`"):
        StreamingFusedDataset(remote.fused("mince"), cache_dir=tmp_path)
    shutil.copytree(KEPT / "fused/mince", tmp_path / "local")
    assert next(iter(StreamingFusedDataset(tmp_path / "local")))


def test_processes_that_run():
    assert is_running(os.getpid())
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    assert not is_running(done.pid)


@pytest.mark.parametrize(
    "name", ["con", "NUL.json", "com1", "trailing.", "a:b", "back\\slash", "x/con/y", "x ", "tab\t"]
)
def test_names_that_windows_cannot_hold(tmp_path, name):
    with pytest.raises(InvalidInputError, match="no path inside its folder"):
        listed_inside(Location.parse(tmp_path), [name])
    with pytest.raises(InvalidInputError):
        Store.open(tmp_path).cache(name)


@pytest.mark.parametrize("name", ["console", "com10", "a.b", "x.y/zarr.json"])
def test_names_that_every_system_can_hold(tmp_path, name):
    listed_inside(Location.parse(tmp_path), [name])


def test_two_names_that_differ_in_case_only(tmp_path):
    store, other = Store.open(KEPT), Store.open(tmp_path)
    copy_artifacts(store, other, ["cache/small"])
    (tmp_path / "caches/small").rename(tmp_path / "caches/Small")
    if (tmp_path / "CACHES").exists():
        pytest.skip("this filesystem holds one of the two")
    message = "'Small', which differs from 'small' in case only"
    with pytest.raises(AlreadyExistsError, match=message):
        copy_artifacts(store, other, ["cache/small"])
    fingerprint = Fingerprint.load(store.cache("small") / "fingerprint.json")
    with pytest.raises(AlreadyExistsError, match=message):
        write_fingerprint(other.cache("small"), fingerprint, "Cache")
    write_fingerprint(other.cache("smaller"), fingerprint, "Cache")
