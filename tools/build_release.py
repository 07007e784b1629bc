"""Build the sdist and, from it, the wheel: the same bytes at any time and in any folder.

    python -m tools.build_release FOLDER [--repository URL]

Builds what is committed, without the network, with the setuptools of this environment. Times are
those of the commit, or of SOURCE_DATE_EPOCH. With `--repository`, links of the README become
addresses of the version's tag there, because an index of packages shows the README alone.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from fusestore.version import __version__

ROOT = Path(__file__).resolve().parent.parent


def build_release(folder: Path, *, root: Path = ROOT, repository: str | None = None) -> list[Path]:
    """The sdist and the wheel of the commit that is checked out, in that order.

    Args:
        folder: where both are written.
        root: the repository.
        repository: address of the repository's pages, for the links of the README.
    """
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or _git(root, "log", "-1", "--format=%ct"))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        exported = Path(work) / "exported"
        archive = _git(root, "archive", "HEAD")
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(exported, filter="data")
        if repository is not None:
            readme = exported / "README.md"
            text = absolute_links(readme.read_text("utf-8"), repository, f"v{__version__}")
            readme.write_text(text, "utf-8")
        made = _call_backend("build_sdist", exported, Path(work) / "sdist", epoch)
        sdist = folder / made.name
        sdist.write_bytes(_plain_archive(made, epoch))
        with tarfile.open(sdist) as tar:
            tar.extractall(Path(work) / "unpacked", filter="data")
        (unpacked,) = (Path(work) / "unpacked").iterdir()
        made = _call_backend("build_wheel", unpacked, Path(work) / "wheel", epoch)
        wheel = folder / made.name
        wheel.write_bytes(made.read_bytes())
    return [sdist, wheel]


def absolute_links(text: str, repository: str, tag: str) -> str:
    """Markdown with addresses for links to files of the repository: images raw, others as pages."""

    def address(found: re.Match[str]) -> str:
        image, label, target = found.groups()
        if "://" in target or target.startswith("#"):
            return found[0]
        page = "raw" if image else "tree" if target.endswith("/") else "blob"
        return f"{image}[{label}]({repository}/{page}/{tag}/{target})"

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", address, text)


def _git(root: Path, *arguments: str) -> bytes:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], check=True, capture_output=True
    ).stdout


def _call_backend(hook: str, source: Path, output: Path, epoch: int) -> Path:
    """What a hook of the build backend writes, called in the source's folder."""
    output.mkdir()
    program = f"import setuptools.build_meta as backend; backend.{hook}({str(output)!r})"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=source,
        env={**os.environ, "SOURCE_DATE_EPOCH": str(epoch)},
        check=False,
        capture_output=True,
        text=True,
        umask=0o022,
    )
    if done.returncode:
        raise SystemExit(f"{hook} failed:\n{done.stdout}{done.stderr}")
    (made,) = output.iterdir()
    return made


def _plain_archive(sdist: Path, epoch: int) -> bytes:
    """The archive in order of names, with one time, no owner, and modes 755 or 644."""
    plain = io.BytesIO()
    with (
        tarfile.open(sdist) as made,
        gzip.GzipFile(fileobj=plain, mode="wb", mtime=epoch, filename="") as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for member in sorted(made.getmembers(), key=lambda member: member.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            tar.addfile(member, made.extractfile(member) if member.isfile() else None)
    return plain.getvalue()


def main() -> None:
    """Build, and print each file with its size and SHA-256."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repository", help="address of the repository's pages")
    arguments = parser.parse_args()
    for path in build_release(arguments.folder, repository=arguments.repository):
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        sys.stdout.write(f"{path}  {len(content):,} bytes  sha256 {digest}\n")


if __name__ == "__main__":
    main()
