"""A short run of the tiny model, as most tests of the trainer want it."""

from fusestore.storage.urls import Location
from fusestore.train import TrainSettings, train

SETTINGS = TrainSettings(
    lm_weight=0.5,
    learning_rate=1e-2,
    batch_size=3,
    gradient_accumulation=2,
    epochs=2,
    precision="no",
    seed=5,
)


def run(model_path, dataset, settings, folder, **options):
    output = Location.parse(folder / "model")
    return train(model_path, dataset, settings, output, folder / "work", **options)
