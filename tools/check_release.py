"""Install what is committed into clean environments, and use it there as a user does.

    python -m tools.check_release [--python PROGRAM ...] [--with REQUIREMENT ...] [--demo]

Builds the sdist and the wheel. For each Python it installs the wheel with pip and the sdist with
uv (where uv is found), without the lock, with the extra `demo` and from wheels alone, so that an
installation that would compile fails. In each environment it imports every public name, runs
`fusestore --help` and `tools/outside/tiny_job.py`, and compares what mypy says of
`tools/outside/typed_program.py`. `--demo` runs `fusestore demo` in the first environment.
Indexes and proxies are those of pip and uv; `--with torch==2.13.0` picks a build of PyTorch.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from tools.build_release import build_release

OUTSIDE = Path(__file__).parent / "outside"
PYTHONS = ("python3.11", "python3.12", "python3.13", "python3.14")

IMPORT_ALL = "import fusestore as fs; [getattr(fs, name) for name in fs.__all__]"

REVEALED = (
    'Revealed type is "tuple[fusestore.fuse.recipe.RecipeSource, ...]"',
    'Revealed type is "fusestore.api.Store"',
    'Revealed type is "fusestore.cache.reader.Cache"',
    'Revealed type is "fusestore.data.fused.Fused"',
    'Revealed type is "int"',
    'Argument "top_k" to "CaptureSettings" has incompatible type "str"',
    'Unexpected keyword argument "no_such_argument" for "fuse" of "Store"',
    '"fuse" defined in "fusestore.api"',
    "Found 2 errors in 1 file",
)
"""What mypy must print about the program, and nothing else."""


class Environment:
    """A new environment of one Python, in a folder."""

    def __init__(self, folder: Path, python: str, installer: str) -> None:
        self.folder, self.installer = folder, installer
        if installer == "pip":
            _run(python, "-m", "venv", str(folder))
        else:
            _run("uv", "venv", "--quiet", "--python", python, str(folder))

    def install(self, *arguments: str) -> None:
        """Install requirements; nothing but fusestore itself is built."""
        options = ["--quiet", "--only-binary", ":all:", "--no-binary", "fusestore"]
        if any(argument.endswith(".whl") for argument in arguments):
            options = options[:3]
        if self.installer == "pip":
            self.run("python", "-m", "pip", "install", "--no-compile", *options, *arguments)
        else:
            python = str(self.folder / "bin/python")
            _run("uv", "pip", "install", "--python", python, *options, *arguments)

    def run(self, program: str, *arguments: str, accepted: Iterable[int] = (0,)) -> str:
        """What a program of the environment prints; its exit code must be accepted."""
        # Outside of the repository, so that what is installed is what is imported.
        return _run(str(self.folder / "bin" / program), *arguments, accepted=accepted)


def _run(*command: str, accepted: Iterable[int] = (0,)) -> str:
    hidden = {"PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME"}
    done = subprocess.run(
        command,
        cwd=tempfile.gettempdir(),
        env={name: value for name, value in os.environ.items() if name not in hidden},
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode not in accepted:
        raise SystemExit(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        )
    return done.stdout


def check(environment: Environment, work: Path) -> None:
    """Use an installed fusestore as a user does.

    Raises:
        SystemExit: something does not hold.
    """
    installed = environment.run("python", "-c", "import fusestore; print(fusestore.__file__)")
    if not Path(installed.strip()).is_relative_to(environment.folder):
        raise SystemExit(f"{installed.strip()} is not what was installed")
    environment.run("python", "-c", IMPORT_ALL)
    for arguments in (["--version"], ["--help"], ["capture", "--help"]):
        if "fusestore" not in environment.run("fusestore", *arguments):
            raise SystemExit(f"fusestore {arguments} says nothing of fusestore")
    work.mkdir()
    for program in OUTSIDE.glob("*.py"):
        shutil.copy(program, work)
    environment.run("python", str(work / "tiny_job.py"), str(work / "job"))
    environment.install("mypy")
    said = environment.run(
        *("mypy", "--strict", "--no-incremental", "--config-file=", str(work / "typed_program.py")),
        accepted=(1,),
    )
    missing = [text for text in REVEALED if text not in said]
    if missing or len(said.splitlines()) != len(REVEALED):
        raise SystemExit(f"mypy was to print {missing}, and nothing more; it printed:\n{said}")


def main() -> None:
    """Check every Python with every installer, and print how long each took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--python", nargs="+", default=[], help="programs; default: those on PATH")
    parser.add_argument("--installer", nargs="+", default=["pip", "uv"], choices=["pip", "uv"])
    parser.add_argument("--with", nargs="+", default=[], dest="pins", help="further requirements")
    parser.add_argument("--work", type=Path, help="folder for the environments; kept")
    parser.add_argument("--demo", action="store_true", help="also run `fusestore demo`")
    arguments = parser.parse_args()
    pythons = arguments.python or [name for name in PYTHONS if shutil.which(name)]
    installers = [name for name in arguments.installer if name == "pip" or shutil.which(name)]
    with tempfile.TemporaryDirectory() as temporary:
        work = (arguments.work or Path(temporary)).absolute()
        sdist, wheel = build_release(work / "dist")
        sys.stdout.write(f"{wheel.name}: {wheel.stat().st_size:,} bytes\n")
        demo = arguments.demo
        for number, python in enumerate(pythons):
            for installer in installers:
                began = time.monotonic()
                folder = work / f"{installer}-{number}"
                environment = Environment(folder, python, installer)
                file = wheel if installer == "pip" else sdist
                environment.install(f"{file}[demo]", *arguments.pins)
                took = time.monotonic() - began
                check(environment, work / f"{installer}-{number}-work")
                if demo:
                    shown = environment.run("fusestore", "demo", "--folder", str(work / "demo"))
                    sys.stdout.write(shown)
                    demo = False
                total = time.monotonic() - began
                sys.stdout.write(
                    f"{python}, {installer}, {file.name}: installed in {took:.0f} s, "
                    f"everything in {total:.0f} s\n"
                )
                sys.stdout.flush()
                if arguments.work is None:
                    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
