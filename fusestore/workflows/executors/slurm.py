"""`slurm_script`: a readable array script, each task of which is a worker."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from fusestore.errors import EngineError, InvalidInputError, NotFoundError
from fusestore.workflows.executors.shared_job import Job


def slurm_script(
    job: Job,
    *,
    tasks: int = 4,
    cores: int = 1,
    gpus: float | None = None,
    options: Mapping[str, str] | None = None,
    folder: Path,
) -> str:
    """The text of an sbatch script.

    Args:
        job: the command and its artifact.
        tasks: number of array tasks.
        cores: CPU cores of each.
        gpus: GPUs of each.
        options: options of sbatch, without dashes; an empty value is a flag.
        folder: the working folder, in which relative paths of the command are found.

    Raises:
        InvalidInputError: an option cannot stand in a script.
    """
    if gpus is not None and gpus != int(gpus):
        raise InvalidInputError(f"worker_gpus is {gpus}; Slurm reserves whole GPUs.")
    name = f"fusestore-{job.kind}-{job.folder.name}"
    chosen = {
        "job-name": name,
        "array": f"0-{tasks - 1}",
        "output": f"{name}-%A_%a.log",
        "open-mode": "append",
        "chdir": str(folder),
        "cpus-per-task": str(cores),
        "requeue": "",
    }
    if gpus:
        chosen["gpus-per-task"] = str(int(gpus))
        chosen["ntasks"] = "1"
    for key, value in (options or {}).items():
        if not key.replace("-", "").isalnum() or "\n" in value:
            raise InvalidInputError(
                f"{key!r} is no option of sbatch; expected a long option without its dashes, such "
                "as partition=gpu."
            )
        chosen[key] = value
    lines = [
        f"#SBATCH --{key}" + (f"={_quoted(value)}" if value else "")
        for key, value in chosen.items()
    ]
    program = shutil.which("fusestore", path=str(Path(sys.executable).parent)) or "fusestore"
    path = (
        f'export PATH={shlex.quote(str(Path(program).parent))}:"$PATH"\n' if "/" in program else ""
    )
    variables = "".join(
        f"export {key}={shlex.quote(os.environ[key])}\n"
        for key in ("FUSESTORE_HOME", "FUSESTORE_PLUGINS", "HF_HOME", "PYTHONPATH")
        if key in os.environ
    )
    is_check = job.kind == "store"
    work = _CHECKED if is_check else _SHARED
    return _SCRIPT.format(
        title=f"{'Checks' if is_check else 'Makes'} {job.title}",
        options="\n".join(lines),
        path=path,
        variables=variables,
        work=work,
        final_codes=(
            "exit code 1 says that there is damage, and 2 that the command line is wrong."
            if is_check
            else "exit code 2 is a command line that can never work."
        ),
        unless='&& [ "$code" -ne 1 ] ' if is_check else "",
        command=shlex.join(["fusestore", *job.arguments]),
    )


def submit(script: Path) -> str:
    """Submit a script; what sbatch answered.

    Raises:
        NotFoundError: this machine has no sbatch.
        EngineError: sbatch refused the script.
    """
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        raise NotFoundError(
            f"sbatch is not on this machine. Copy {script} to a login node of the cluster, and run "
            f"`sbatch {script.name}` there."
        )
    done = subprocess.run(  # noqa: S603 - Slurm's own program
        [sbatch, str(script)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise EngineError(f"sbatch refused {script}: {done.stderr.strip()}")
    return done.stdout.strip()


def _quoted(value: str) -> str:
    """A value in a line that sbatch reads, which splits it at spaces outside double quotes."""
    return f'"{value}"' if any(character.isspace() for character in value) else value


_SHARED = """\
# All tasks run the same command. They share the shards by the leases in the store, so tasks may
# start late, end early, be killed and be requeued, and you may submit this script again or add
# tasks at any time. No step is needed at the end: the tasks that find every shard made write
# the manifest. The rank (RANK, SLURM_PROCID, SLURM_ARRAY_TASK_ID or JOB_COMPLETION_INDEX) only
# chooses the shard that a task begins with, so the same command also works under srun, torchrun
# and Kubernetes."""

_CHECKED = """\
# All tasks run the same command, and each checks its share of the artifacts, by its rank (RANK,
# SLURM_PROCID, SLURM_ARRAY_TASK_ID or JOB_COMPLETION_INDEX). The store is sound if every task ends
# with exit code 0; the logs name the damage."""

_SCRIPT = """#!/bin/bash
# {title}. Written by `fusestore --executor slurm`; read it, change it, submit it with sbatch.
#
{work}
{options}

# Variables of your shell, such as AWS_* for the store, reach the tasks as sbatch passes them on.
{path}{variables}export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-${{SLURM_CPUS_PER_TASK:-1}}}}"

{command}
code=$?

# Slurm requeues a task after a failed node or a preemption by itself. After another failure it is
# requeued here, three times at most; {final_codes}
if [ "$code" -ne 0 ] {unless}&& [ "$code" -ne 2 ] && [ -n "${{SLURM_JOB_ID:-}}" ] \\
    && [ "${{SLURM_RESTART_COUNT:-0}}" -lt 3 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""
