"""Requeueing of a Slurm job whose time is about to end."""

from __future__ import annotations

import os
import subprocess

from idaa_lightly.bench.ranks import is_first_process


def requeue() -> str:
    """Ask Slurm to start the job of this process again, as Lightning would. Only the first process of a job asks.

    Returns:
        A sentence about the outcome, or an empty string outside of Slurm and in other processes.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or not is_first_process():
        return ""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = str(getattr(error, "stderr", "") or error).strip()
        return f" Slurm could not requeue job {job} ({reason}): submit it again."
    return f" Slurm has requeued job {job}."
