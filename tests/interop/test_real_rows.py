"""Real rows of SmolLM2, out of a store in each layout and into it again."""

import numpy as np
import pytest

import fusestore as fs
from fusestore.fuse.recipe import Recipe
from fusestore.fuse.resolve import find_inputs
from fusestore.fuse.shard import fuse_rows

TEXT = (
    "The river rose in the night, and by morning the lower fields were a lake. Old Marta counted "
    "her sheep twice, as her mother had taught her, and found that none of them was missing."
)


@pytest.fixture(scope="module")
def captured(tmp_path_factory, smollm2_path):
    """A store with 40 or so rows of SmolLM2, and the model."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "text.txt").write_text(TEXT)
    store = fs.open_store(folder / "store")
    model = fs.Model.open(str(smollm2_path))
    corpus = store.build_corpus("texts", folder / "text.txt", tokenizers=[model])
    settings = fs.CaptureSettings(top_k=16, profile="lossless")
    store.capture("real", model, corpus, settings)
    return store, model


def fused(store, model, name, count):
    recipe = Recipe(sources=[{"cache": name}], top_k=16, keep_label=False)
    rows, _ = fuse_rows(find_inputs(store, recipe, model), 0, count)
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["numpy", "safetensors", "axolotl", "distillkit"])
def test_real_rows_come_back(captured, tmp_path, layout):
    store, model = captured
    suffix = {"numpy": ".npz", "safetensors": ".safetensors", "axolotl": ".parquet"}
    path = tmp_path / f"rows{suffix.get(layout, '')}"
    store.export("real", path, layout)
    again = store.import_rows(
        layout,
        "numpy" if layout == "safetensors" else layout,
        path,
        fs.ImportSettings(profile="lossless"),
        model=model,
        corpus="texts",
    )
    real = store.open_cache("real")
    count = real.fingerprint.num_tokens
    assert 30 < count < 60
    assert again.fingerprint.model.vocab_size == model.vocab_size
    first, second = fused(store, model, "real", count), fused(store, model, layout, count)
    has_row = again.kept.mask(0, count)
    assert has_row.sum() >= count - 1
    np.testing.assert_array_equal(second.ids[has_row], first.ids[has_row])
    np.testing.assert_allclose(second.logprobs[has_row], first.logprobs[has_row], atol=1e-6)
    np.testing.assert_allclose(np.exp(second.tail[has_row]), np.exp(first.tail[has_row]), atol=1e-6)
    settings = fs.ForecastSettings(split="train")
    if not again.fingerprint.known_labels:
        with pytest.raises(fs.FusestoreError, match="probability of every next token"):
            store.forecast(Recipe(sources=[{"cache": layout}]), settings, target=model)
        return
    forecasts = [
        store.forecast(Recipe(sources=[{"cache": name}]), settings, target=model).model_dump_json()
        for name in ("real", layout)
    ]
    assert forecasts[1].replace(f'"{layout}"', '"real"') == forecasts[0]
