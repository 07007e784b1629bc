"""Settings of a capture that exclude each other, or have no effect."""

from __future__ import annotations

from fusestore.cache.manifest import DEFAULT_ENGINE
from fusestore.models.placement import Placement
from fusestore.models.quantization import Quantization


def model_setting_problems(
    placement: Placement, quantization: Quantization, *, engine: str, device: str, compiles: bool
) -> list[str]:
    """What is wrong with the settings that say how the model is loaded, all of it."""
    given = [
        name
        for name, is_given in (
            ("device_map", placement.device_map is not None),
            ("max_memory", bool(placement.max_memory)),
            ("offload_folder", placement.offload_folder is not None),
            ("tensor_parallel", placement.tensor_parallel),
            ("compile", compiles),
            ("quantization", quantization != "stored"),
        )
        if is_given
    ]
    problems = []
    if engine != DEFAULT_ENGINE and given:
        verb = "has" if len(given) == 1 else "have"
        problems.append(f"{', '.join(given)} {verb} an effect with engine {DEFAULT_ENGINE} only")
    if placement.device_map is None:
        problems += [
            f"{name} needs device_map" for name in given if name in ("max_memory", "offload_folder")
        ]
    spread = [name for name in given if name in ("device_map", "tensor_parallel")]
    if len(spread) > 1:
        problems.append("device_map and tensor_parallel exclude each other")
    if spread and device != "auto":
        problems.append(f"{' and '.join(spread)} place the model, so device must be auto")
    if spread and compiles:
        problems.append(f"compile is for a model on one device, not with {' and '.join(spread)}")
    if placement.tensor_parallel and quantization.startswith("bnb-"):
        problems.append(f"quantization {quantization} does not work with tensor_parallel")
    return problems
