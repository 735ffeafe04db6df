"""Which device computes, and an error where the machine shows a GPU that torch cannot use."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import torch

from balance.errors import UserError


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:1` → a device that works.

    UserError: CUDA asked for and absent; or, with `auto`, a GPU that the machine shows but torch cannot use.
    """
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        if count:
            return torch.device("cuda", torch.cuda.current_device())
        if shown := shown_gpu():
            raise UserError(
                f"this machine shows a GPU ({shown}) but torch cannot use it: {_torch_build()}. Install a torch whose "
                "CUDA the driver supports (make install GPU=1), or type encoder.device=cpu to run without the GPU"
            )
        return torch.device("cpu")
    if not count:
        raise UserError(
            f"encoder.device={name}: torch sees no GPU ({_torch_build()}). Type encoder.device=cpu, or install a "
            "torch whose CUDA the driver supports (make install GPU=1)"
        )
    device = torch.device(name)
    if (device.index or 0) >= count:
        raise UserError(f"encoder.device={name}: torch sees {count} GPU(s), cuda:0 to cuda:{count - 1}")
    return device


def own_device(name: str) -> torch.device:
    """The device that embedded, for this process's own work: the CPU where a GPU of another machine did it."""
    return torch.device(name if torch.cuda.is_available() else "cpu")


def shown_gpu() -> str:
    """How the machine shows a GPU to this process ("" if it does not): the user's, Slurm's or the driver's word."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        return ""  # hidden on purpose
    if visible:
        return f"CUDA_VISIBLE_DEVICES={visible}"
    for variable in ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE"):
        value = os.environ.get(variable, "")
        if value and (variable, value) != ("SLURM_GPUS_ON_NODE", "0"):  # a number of GPUs; the others are lists
            return f"{variable}={value}"
    driver = _nvidia_smi()
    return f"nvidia-smi: {driver}" if driver else ""


def _nvidia_smi() -> str:
    """First GPU's name and driver version, "" where the program is absent or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
    return ", driver ".join(part.strip() for part in answer.splitlines()[0].split(",")) if answer else ""


def _torch_build() -> str:
    cuda = torch.version.cuda
    build = f"torch {torch.__version__} is " + (f"built for CUDA {cuda}" if cuda else "a CPU build")
    driver = _nvidia_smi()
    return f"{build}; {driver}" if driver else f"{build}; nvidia-smi does not answer"


def slow_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU embeds more slowly in bfloat16 than in float32; False where nothing is known of it.

    Measured with the released model's size: an Intel with AVX512-BF16 but without AMX 2.5 against 4.6 clips/s, an AMD
    of Zen 4 twice as fast in bfloat16. Without either instruction torch computes bfloat16 in float32, with copies.
    """
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    flags = next((set(line.split()) for line in text.splitlines() if line.startswith("flags")), set())
    if not flags or "amx_bf16" in flags:
        return False
    return "avx512_bf16" not in flags or "GenuineIntel" in text


def worker_devices(asked: str, device: str, num_processes: int | str) -> list[str]:
    """The device of each encoder process: all visible GPUs in turn, unless one was named.

    asked: `encoder.device` as typed; device: what it was resolved to; num_processes: `auto` is one per visible GPU, or
    one on a named device and on a CPU. torch numbers the GPUs that `CUDA_VISIBLE_DEVICES` lists, however it names them.
    """
    every_gpu = asked in ("auto", "cuda") and device.startswith("cuda")
    devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if every_gpu else [device]
    count = len(devices) if num_processes == "auto" else int(num_processes)
    return [devices[i % len(devices)] for i in range(count)]
