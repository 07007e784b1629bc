"""`fusestore run` and `compare` show learning curves, print what they say, and write an image."""

import json
import shutil

import pytest

from tests.helpers.tiny_job import write_fusion

ALONG = ("max_steps = 4", "max_steps = 4\neval_every = 1")
EVALUATE = ["--evaluate", "addresses/held_out"]


@pytest.mark.slow
def test_curves_of_a_run_and_of_a_store(command, job, store, tmp_path):
    shutil.rmtree(store / "models")
    image = tmp_path / "plots" / "run.svg"
    plot = ('evaluate_split = "held_out"', f'evaluate_split = "held_out"\nplot = "{image}"')
    fusion = write_fusion(tmp_path, job, str(store), ALONG, plot)
    shown = command.succeeds("run", fusion)
    assert str(image) in shown.err
    assert "fused (text and fused distributions)" in image.read_text()
    assert "o baseline (the text alone): best" in shown.out
    assert "baseline, which learns from the text alone" in shown.out
    printed = command.succeeds("run", fusion, "--json").json
    baseline, fused = printed["curves"]
    assert baseline["tokens"] == fused["tokens"] == [0, *(n * 256 for n in (1, 2, 3, 4))]
    assert baseline["bits_per_byte"][0] == fused["bits_per_byte"][0]
    (saving,) = printed["savings"]
    assert (saving["run"], saving["baseline"]) == ("fused", "baseline")
    assert saving["best_of_run"] == min(fused["bits_per_byte"])

    # Evaluated on no text that is compared here, or not along the way: no curve.
    train = ["train", job / "small", "--store", store, "--fused", "mince", "--max-steps", "2"]
    command.succeeds(*train, "--name", "ends", *EVALUATE)
    other = ["--evaluate", "addresses/train", "--eval-every", "1"]
    command.succeeds(*train, "--name", "other", *other)
    image = tmp_path / "compare.svg"
    compare = ["compare", "--store", store, *EVALUATE]
    shown = command.succeeds(*compare, "--plot", image).out
    assert "model/other" in shown
    assert "baseline, which learns from the text alone" in shown
    assert image.read_text().count("<polyline") == 2
    assert json.loads(command.succeeds(*compare, "--json").out)["curves"] == [baseline, fused]

    shutil.rmtree(store / "models")
    command.succeeds(*train, "--name", "ends", *EVALUATE)
    assert "--eval-every" in command.fails(*compare, "--plot", image)
    assert "outside" in command.fails(*compare, "--plot", store / "plot.svg")


def test_a_plot_needs_evaluations_along_the_way(command, job, store, tmp_path):
    plot = ('evaluate_split = "held_out"', 'evaluate_split = "held_out"\nplot = "a.svg"')
    message = command.fails("run", write_fusion(tmp_path, job, str(store), plot))
    assert "eval_every" in message
