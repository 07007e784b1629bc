"""docs/evidence.md names every benchmark and every experiment, and none that there is not."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/evidence.md").read_text(encoding="utf-8")


def test_every_measuring_script_is_named() -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for folder in ("benchmarks", "experiments")
        for path in (ROOT / folder).glob("*.py")
    }
    named = set(re.findall(r"(?:benchmarks|experiments)/\w+\.py", PAGE))
    modules = re.findall(r"-m (benchmarks|experiments)\.(\w+)", PAGE)
    assert named | {f"{folder}/{name}.py" for folder, name in modules} == files


def test_every_result_is_dated_and_has_a_page_with_details() -> None:
    rows = [line for line in PAGE.splitlines() if re.search(r"`[^`]*(?:python|make gpu)", line)]
    assert len(rows) > 15
    for row in rows:
        if row.startswith("|"):
            details = row.split("|")[4]
            assert re.search(r"\d{4}-\d{2}-\d{2}|not run", row), row
            assert re.search(r"\]\([\w.#-]+\)|in the file", details), row
