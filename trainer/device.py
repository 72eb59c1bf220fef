"""Which device and which number format a run uses, each with its reason."""

from __future__ import annotations

import os
import shutil
import subprocess
import warnings
from pathlib import Path

import torch


class DeviceError(RuntimeError):
    """A device or number format that was asked for, or is plainly there, cannot be used."""


def choose_device(wanted: str = "auto") -> tuple[torch.device, str]:
    """The device to train on and why.

    Args:
        wanted: "auto" (a GPU where there is one), "cuda" or "cpu".

    Raises:
        DeviceError: "cuda" without a usable GPU; "auto" where a GPU is there but unusable, since training on the CPU
            instead would take days and nobody would know why.
    """
    if wanted == "cpu":
        return torch.device("cpu"), "device=cpu was asked for"
    problem = _cuda_problem()
    if problem is None:
        return torch.device("cuda"), f"GPU {torch.cuda.get_device_name()}"
    if wanted == "auto" and not _gpu_is_there():
        return torch.device("cpu"), "no GPU"
    raise DeviceError(
        f"The GPU cannot be used: {problem}. Update the NVIDIA driver or install the torch build that fits it "
        "(https://pytorch.org/get-started), or train on the CPU with --device cpu."
    )


def choose_precision(wanted: str, device: torch.device) -> tuple[str, str]:
    """The number format of the matrix products ("fp16", "bf16" or "fp32") and why. Weights stay float32 in each.

    Raises:
        DeviceError: bf16 on a GPU that does not have it (Turing, such as the RTX 2080).
    """
    if wanted == "auto":
        if device.type != "cuda":
            return ("bf16", "the CPU has it") if _cpu_has_bf16() else ("fp32", "a CPU without bf16")
        return ("bf16", "the GPU has it") if _has_bf16() else ("fp16", "a GPU without bf16")
    if wanted == "bf16" and device.type == "cuda" and not _has_bf16():
        raise DeviceError(f"{torch.cuda.get_device_name()} has no bf16 arithmetic: use --precision fp16 or auto.")
    return wanted, f"precision={wanted} was asked for"


def _has_bf16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 matrices itself; elsewhere torch converts them."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def _cuda_problem() -> str | None:
    """None where CUDA works, else what is wrong. A tiny sum proves it: a GPU too old for this build fails only then."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if torch.cuda.is_available():
                (torch.ones(2, device="cuda") + 1).sum().item()
                return None
        except RuntimeError as error:
            return str(error).splitlines()[0].rstrip(".")
    if torch.version.cuda is None and torch.version.hip is None:
        return f"this torch {torch.__version__} is built without CUDA"
    said = " ".join(str(entry.message).split("(Triggered")[0].strip() for entry in caught)
    return said.rstrip(".") or "CUDA finds no device"


def _gpu_is_there() -> bool:
    """Whether this machine has an NVIDIA GPU that the user did not hide with CUDA_VISIBLE_DEVICES."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "unset") in ("", "-1"):
        return False
    if any(Path("/proc/driver/nvidia/gpus").glob("*")):
        return True
    command = shutil.which("nvidia-smi")
    if command is None:
        return False
    try:
        return subprocess.run([command, "-L"], capture_output=True, timeout=10).stdout.strip().startswith(b"GPU")
    except (OSError, subprocess.TimeoutExpired):
        return False
