"""`execute`: completes an artifact by the workers of an executor."""

from __future__ import annotations

from pathlib import Path

from fusestore.errors import EngineError
from fusestore.progress import Reporter
from fusestore.storage.disk_errors import disk_errors
from fusestore.workflows.executors.local import run_local
from fusestore.workflows.executors.ray_pool import run_on_ray
from fusestore.workflows.executors.settings import ExecutorSettings
from fusestore.workflows.executors.shared_job import Job
from fusestore.workflows.executors.slurm import slurm_script, submit


def execute(job: Job, settings: ExecutorSettings, reporter: Reporter) -> bool:
    """Have the workers of an executor complete an artifact.

    Returns:
        Whether the artifact is complete now. With `slurm` it is not: the script is written and
        perhaps submitted.

    Raises:
        EngineError: every worker failed.
    """
    if settings.name == "slurm":
        write_script(job, settings, reporter)
        return False
    if job.is_complete():
        return True
    if settings.name == "local":
        run_local(job, reporter, workers=settings.num_workers or 2, cores=settings.worker_cpus)
    else:
        run_on_ray(
            job,
            reporter,
            address=settings.address,
            workers=settings.num_workers,
            cpus=settings.worker_cpus or 1,
            gpus=settings.worker_gpus or 0,
        )
    if not job.is_complete():
        raise EngineError(f"The workers of {job.title} ended, but it is not complete.")
    return True


def write_script(job: Job, settings: ExecutorSettings, reporter: Reporter) -> Path:
    """Write the Slurm script of a job, and submit it if the settings say so; its path."""
    script = settings.script or Path(f"{job.kind}-{job.folder.name}.sbatch")
    text = slurm_script(
        job,
        tasks=settings.num_workers or 4,
        cores=settings.worker_cpus or 1,
        gpus=settings.worker_gpus,
        options=settings.slurm_options,
        folder=Path.cwd(),
    )
    with disk_errors(script):
        script.write_text(text, encoding="utf-8")
        script.chmod(0o755)
    reporter.line(f"Wrote {script}. Submit it with `sbatch {script}`.")
    if settings.submit:
        reporter.line(submit(script))
    return script
