"""The device that computes: `auto`, what the machine shows, and what torch can use of it."""

import os
from pathlib import Path

import pytest
import torch

from balance.encoders.device import resolve_device, shown_gpu, slow_bfloat16, worker_devices
from balance.errors import UserError

CPU = torch.device("cpu")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine whose torch sees no GPU")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH without nvidia-smi and an environment without a word of GPUs; a folder on the PATH."""
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def put_nvidia_smi(folder: Path, answer: str, status: int = 0) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{answer}'\nexit {status}\n")
    os.chmod(program, 0o755)


@no_gpu
def test_auto_without_any_gpu_is_the_cpu(machine: Path) -> None:
    assert resolve_device("auto") == CPU
    put_nvidia_smi(machine, "NVIDIA-SMI has failed because it could not communicate with the driver", status=9)
    assert resolve_device("auto") == CPU


@no_gpu
@pytest.mark.parametrize(
    ("variable", "value"),
    [("CUDA_VISIBLE_DEVICES", "0,1"), ("SLURM_JOB_GPUS", "3"), ("SLURM_STEP_GPUS", "0"), ("SLURM_GPUS_ON_NODE", "8")],
)
def test_a_gpu_that_torch_cannot_use_is_an_error(
    machine: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError) as caught:
        resolve_device("auto")
    message = str(caught.value)
    for words in (f"{variable}={value}", f"torch {torch.__version__}", "make install GPU=1", "encoder.device=cpu"):
        assert words in message
    assert resolve_device("cpu") == CPU


@no_gpu
def test_nvidia_smi_shows_a_gpu(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_nvidia_smi(machine, "NVIDIA H200, 550.54.15")
    with pytest.raises(UserError, match=r"nvidia-smi: NVIDIA H200, driver 550\.54\.15"):
        resolve_device("auto")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden on purpose
    assert shown_gpu() == ""
    assert resolve_device("auto") == CPU


@no_gpu
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_cuda_asked_for_and_absent(machine: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"encoder.device={name}: torch sees no GPU.*encoder.device=cpu"):
        resolve_device(name)


@pytest.mark.parametrize(
    ("vendor", "flags", "slow"),
    [
        ("GenuineIntel", "avx2 avx512f avx512_bf16", True),  # Cooper Lake
        ("GenuineIntel", "avx512_bf16 amx_bf16 amx_tile", False),  # Sapphire Rapids
        ("GenuineIntel", "avx2", True),
        ("AuthenticAMD", "avx2 avx512f avx512_bf16", False),  # Zen 4
        ("AuthenticAMD", "avx2", True),  # Zen 3
    ],
)
def test_bfloat16_is_slow_where_the_processor_has_no_fast_instruction_for_it(
    tmp_path: Path, vendor: str, flags: str, slow: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(f"vendor_id\t: {vendor}\nflags\t\t: fpu {flags}\n")
    assert slow_bfloat16(tmp_path / "cpuinfo") is slow


def test_of_an_unknown_processor_nothing_is_said(tmp_path: Path) -> None:
    assert not slow_bfloat16(tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("CPU implementer\t: 0x41\nFeatures\t: fp asimd bf16\n")
    assert not slow_bfloat16(tmp_path / "cpuinfo")


@pytest.mark.parametrize(
    ("asked", "device", "num_processes", "expected"),
    [
        ("auto", "cuda:0", "auto", ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda", "cuda", "auto", ["cuda:0", "cuda:1", "cuda:2"]),
        ("auto", "cuda:0", 4, ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]),
        ("auto", "cuda:0", 1, ["cuda:0"]),
        ("cuda:1", "cuda:1", "auto", ["cuda:1"]),
        ("cuda:1", "cuda:1", 2, ["cuda:1", "cuda:1"]),
        ("auto", "cpu", "auto", ["cpu"]),
        ("cpu", "cpu", 2, ["cpu", "cpu"]),
    ],
)
def test_encoder_processes_take_all_gpus_unless_one_is_named(
    monkeypatch: pytest.MonkeyPatch, asked: str, device: str, num_processes: int | str, expected: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert worker_devices(asked, device, num_processes) == expected
