"""Commands in a terminal of 80 and 120 columns, and in a pipe."""

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

from fusestore.version import FORMAT_VERSION
from tests.helpers.command import PROGRAM
from tests.helpers.fork_server import python

pty = pytest.importorskip("pty")
fcntl = pytest.importorskip("fcntl")
termios = pytest.importorskip("termios")

STORE = Path(__file__).parents[1] / f"kept_store/format-{FORMAT_VERSION}/store"
NAMES = ["corpus/addresses", "cache/instructions", "alignment/instructions--chatml", "fused/mince"]
COMMANDS = [
    ["ls"],
    ["tree"],
    ["du"],
    ["du", "cache/wide"],
    ["show", "cache/wide"],
    ["show", "alignment/wide--small"],
    ["show", "cache/wide", "--document", "2"],
    ["gc", "--dry-run", "--older-than", "0"],
]


def in_a_terminal(columns, *arguments):
    """What a command writes to a terminal of this width."""
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {key: each for key, each in os.environ.items() if key not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [python(), "-c", PROGRAM, *arguments],
        stdin=other,
        stdout=other,
        stderr=other,
        env={**environment, "TERM": "xterm-256color"},
    )
    os.close(other)
    written = b""
    while True:
        try:
            data = os.read(main, 65536)
        except OSError:  # Linux says so when the other end is closed.
            break
        if not data:
            break
        written += data
    os.close(main)
    assert process.wait() == 0, written.decode()
    return written.decode().replace("\r\n", "\n")


def plain(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_tables_are_readable(arguments, columns):
    text = plain(in_a_terminal(columns, *arguments, "--store", str(STORE)))
    assert "┃" not in text
    # Beside tables there are sentences and paths, which the terminal wraps.
    tables = [line for line in text.splitlines() if re.search(r"\S {2,}\S", line)]
    sentences = re.compile(r"^ {2}(location|used by|made from|digest|content):")
    for line in tables:
        assert cell_len(line) <= columns or sentences.match(line), line
    if arguments == ["ls"]:
        for name in NAMES:
            assert name in text
        assert "complete" in text
        assert "224 bytes" in text
    if arguments == ["du"]:
        assert all(name in text for name in NAMES)
        files = (path for path in (STORE / "caches/wide").rglob("*") if path.is_file())
        size = f"{sum(path.stat().st_size for path in files) / 1000:.1f} kB"
        assert re.search(rf"cache/wide +{re.escape(size)}", text) or f"size: {size}" in text
    if arguments == ["tree"]:
        assert "│  └─ alignment/drawn--small" in text


def test_a_pipe_gets_plain_lines():
    shown = subprocess.run(
        [sys.executable, "-c", PROGRAM, "ls", "--store", str(STORE)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "\x1b" not in shown
    rows = [re.split(r" {2,}", line) for line in shown.splitlines()[1:]]
    assert rows[0] == ["artifact", "state", "description"]
    assert ["cache/wide", "complete", "134 tokens, top 8, 14,556 bytes"] in rows
    assert all(len(row) == 3 for row in rows)
