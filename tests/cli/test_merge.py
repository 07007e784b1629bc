"""`fusestore merge`: the same model merged, fused and trained plainly, in one listing."""


def test_merged_and_trained_models_are_listed_with_their_scores(command, store):
    both = [store / "models" / name for name in ("baseline", "fused")]
    merge = ["merge", *both, "--store", store, "--name", "mean"]
    merge += ["--evaluate", "addresses/held_out"]
    shown = command.succeeds(*merge, "--weight", "1", "--weight", "3").out
    assert "Merged mean" in shown
    assert "on addresses/held_out: bits_per_byte" in shown
    told = command.succeeds(*merge, "--weight", "1", "--weight", "3", "--json").json
    assert told["built"] is False
    assert told["merge"]["settings"]["weights"] == [1.0, 3.0]
    bits = told["evaluation"]["metrics"]["bits_per_byte"]
    listed = command.succeeds("inspect", "--store", store).out
    assert f"linear merge of 2 models, held-out bits per byte {bits:.4f}" in listed
    assert listed.count("held-out bits per byte") == 3
    assert command.succeeds("verify", "--store", store).code == 0
    assert "Choose another name" in command.fails(*merge)
    assert "Choose another name" in command.fails(*merge[:-4], "--name", "fused")


def test_what_cannot_be_merged_is_explained(command, job, store):
    merge = ["merge", "--store", store, "--name", "new"]
    message = command.fails(*merge, job / "small", job / "wide")
    assert "different architectures" in message
    assert "fuse their distributions" in message
    assert "--base" in command.fails(*merge, job / "small", job / "small", "--method", "ties")
    message = command.fails(*merge, job / "small", job / "small", "--method", "mean")
    assert "slerp" in message
    assert "absent" in command.fails(*merge, job / "small", job / "absent")
    assert not (store / "models" / "new").exists()
