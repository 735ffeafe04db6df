"""The cores that this process may use, as the system, the cgroup and Slurm say."""

from __future__ import annotations

import os
from pathlib import Path


def available_cores() -> int:
    """The least of affinity, cgroup quota and `SLURM_CPUS_PER_TASK`."""
    cores = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores.append(max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2, or no quota ("max")
    slurm = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if slurm.isdigit():
        cores.append(max(1, int(slurm)))
    return min(cores)
