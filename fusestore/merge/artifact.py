"""The model as a kind of artifact: trained on a fused dataset, or merged of other models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fusestore.merge.manifest import MergeManifest, MergePlan
from fusestore.storage.location import Location
from fusestore.store.artifact_types import DocumentSchema, Input
from fusestore.store.findings import DAMAGE, Finding
from fusestore.store.layout import Store
from fusestore.store.manifest import manifest_content
from fusestore.store.registry import Artifact, ArtifactKind
from fusestore.train.manifest import TrainingManifest, TrainingPlan


class ModelKind(ArtifactKind):
    """A Hugging Face model folder, published by training or merging."""

    name, folder, title = "model", "models", "model"
    made_by = "Make one with `fusestore train`."

    def parse(self, data: bytes, file: str) -> TrainingManifest | MergeManifest:
        """The manifest of training or merging."""
        merged = "merge" in manifest_content(data, file)
        return (MergeManifest if merged else TrainingManifest).from_bytes(data, file)

    def describe(self, manifest: Mapping[str, Any]) -> str:
        """Its origin and held-out bits per byte."""
        if "merge" in manifest:
            metrics = (manifest["evaluation"] or {"metrics": {}})["metrics"]
        else:
            points = {point["step"]: point["metrics"] for point in manifest["evaluations"]}
            metrics = points.get(manifest["result_step"], {})
        text = how_made(manifest)
        if "bits_per_byte" in metrics:
            text += f", held-out bits per byte {metrics['bits_per_byte']:.4f}"
        return text

    def inputs(self, manifest: Mapping[str, Any]) -> Iterable[Input]:
        """The fused dataset of a trained model; the inputs of a merge are outside the store."""
        if "merge" not in manifest:
            yield Input("fused", str(manifest["plan"]["dataset_digest"]))

    def begun_inputs(self, fingerprint: Mapping[str, Any]) -> Iterable[Input]:
        """The fingerprint of a trained model is its plan."""
        return () if "model_digests" in fingerprint else self.inputs({"plan": fingerprint})

    def model(self, manifest: Mapping[str, Any]) -> str | None:
        """The model that training began with; of a merge how it was made."""
        if "merge" in manifest:
            return how_made(manifest)
        return f"trained from model {str(manifest['plan']['base_model_digest'])[:16]}"

    def check(self, store: Store, artifact: Artifact, *, quick: bool) -> Iterable[Finding]:
        """Its files, the headers of its weights and, unless `quick`, that they are finite."""
        findings = list(super().check(store, artifact, quick=quick))
        if not findings:
            manifest: Any = self.load(artifact.location)
            for name in sorted(manifest.files):
                if name.endswith(".safetensors"):
                    findings += _weight_findings(artifact.location / name, name, quick=quick)
        return findings

    def remedy(self, store: Store, name: str, finding: Finding) -> str:
        """The commands that make the model again; a repair could not give the same bytes."""
        del finding
        return (
            f"delete {self.location(store, name)} and run the same `fusestore train` or "
            "`fusestore merge` again"
        )

    def schemas(self) -> Mapping[str, DocumentSchema]:
        """Fingerprints and manifests of both."""
        root = "models/<model>"
        return {
            "model-fingerprint": DocumentSchema(TrainingPlan, f"{root}/fingerprint.json"),
            "model": DocumentSchema(TrainingManifest, f"{root}/manifest.json"),
            "merged-model-fingerprint": DocumentSchema(MergePlan, f"{root}/fingerprint.json"),
            "merged-model": DocumentSchema(MergeManifest, f"{root}/manifest.json"),
        }


def _weight_findings(file: Location, name: str, *, quick: bool) -> Iterable[Finding]:
    from fusestore.models.safetensors_check import not_finite, safetensors_header

    try:
        safetensors_header(file)
        wrong = None if quick else not_finite(file)
    except DAMAGE as error:
        return [Finding(name, str(error))]
    return [Finding(name, f"has NaN or infinity in tensor {wrong}")] if wrong else []


def how_made(manifest: Mapping[str, Any]) -> str:
    """The origin of a model, from the content of its manifest."""
    if "merge" in manifest:
        plan = manifest["merge"]
        return f"{plan['settings']['method']} merge of {len(plan['model_digests'])} models"
    plan, step = manifest["plan"], manifest["result_step"]
    text = f"{plan['settings']['objective']}, {manifest['num_tokens']:,} tokens trained"
    if lora := plan["settings"].get("lora"):
        text += (
            f", {'LoRA adapter alone' if lora['adapter_only'] else 'LoRA'} of rank {lora['rank']}"
        )
    return text if step == plan["total_steps"] else f"{text}, weights of step {step:,}"
