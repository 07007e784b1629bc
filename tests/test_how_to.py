"""The pages of docs/how-to that extend fusestore: each program prints what its page shows."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.helpers.fork_server import python

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs/how-to").glob("add-*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_program_prints_what_the_page_shows(page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (shown,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    file = tmp_path / "program.py"
    file.write_text(program, encoding="utf-8")
    # A process of its own: what a page registers would stay in this one.
    result = subprocess.run(
        [python(), str(file)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == shown
