"""How long `fusestore --help` takes, against an empty Typer program's `--help`.

    python benchmarks/help.py

Fresh interpreters in turns, 21 of each; prints the medians and their ratio.
Last run, on two shared cores: fusestore 112 ms, empty 241 ms (ratio 0.47; Typer's own help draws
boxes with Rich), empty and plain 102 ms (ratio 1.10). On the same with ten other processes: ratios
0.31 and 1.03. tests/test_light.py counts the modules: those of the plain program, and 7 of ours.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

_EMPTY = """
import typer
app = typer.Typer({options})
@app.command()
def main() -> None:
    "Do nothing."
app()
"""

PROGRAMS = {
    "fusestore": "from fusestore_cli.app import main; main()",
    "empty": _EMPTY.format(options=""),
    "empty, plain": _EMPTY.format(options="rich_markup_mode=None"),
}
_TURNS = 21


def seconds(program: str) -> float:
    """Wall time of one help page in a fresh interpreter."""
    began = time.perf_counter()
    command = [sys.executable, "-c", program, "--help"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Print the medians."""
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(_TURNS):
        for name, program in PROGRAMS.items():
            times[name].append(seconds(program))
    ours = statistics.median(times["fusestore"])
    for name, found in times.items():
        median = statistics.median(found)
        print(f"{name}: {1000 * median:.0f} ms, fusestore takes {ours / median:.2f} of it")


if __name__ == "__main__":
    main()
