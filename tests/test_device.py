"""The choice of device and number format, each with its reason. A GPU is played by monkeypatching torch.cuda."""

import logging
import subprocess
import warnings

import pytest
import torch

from trainer import device as device_module
from trainer.device import DeviceError, choose_device, choose_precision
from trainer.trainer import EmbeddingTrainer

TOO_OLD = "The NVIDIA driver on your system is too old (found version 10010)."
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device_module, "_gpu_is_there", lambda: False)


@pytest.fixture
def working_gpu(monkeypatch):
    monkeypatch.setattr(device_module, "_cuda_problem", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA GeForce RTX 2080")


@pytest.fixture
def old_driver(monkeypatch):
    """A machine whose GPU torch cannot use: it warns and says that there is none."""

    def is_available() -> bool:
        warnings.warn(f"CUDA initialization: {TOO_OLD} (Triggered internally at CUDAFunctions.cpp:1)", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.version, "cuda", "12.9")
    monkeypatch.setattr(device_module, "_gpu_is_there", lambda: True)


def test_auto_takes_the_gpu_where_there_is_one(working_gpu):
    assert choose_device("auto") == (CUDA, "GPU NVIDIA GeForce RTX 2080")
    assert choose_device("cuda")[0] == CUDA
    assert choose_device("cpu") == (CPU, "device=cpu was asked for")


def test_auto_takes_the_cpu_where_there_is_no_gpu(no_gpu):
    assert choose_device("auto") == (CPU, "no GPU")


def test_cuda_without_a_gpu_is_an_error_that_says_what_to_do(no_gpu):
    with pytest.raises(DeviceError, match=r"cannot be used: .*--device cpu"):
        choose_device("cuda")


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_a_gpu_with_an_old_driver_is_an_error_and_not_a_run_on_the_cpu(old_driver, wanted):
    with pytest.raises(DeviceError) as caught:
        choose_device(wanted)
    message = str(caught.value)
    assert TOO_OLD in message
    assert "Triggered" not in message and "--device cpu" in message


def test_the_cpu_can_be_asked_for_beside_an_unusable_gpu(old_driver):
    assert choose_device("cpu")[0] == CPU


def test_the_trainer_refuses_an_unusable_gpu(old_driver, toy_model, toy_config):
    with pytest.raises(DeviceError, match="too old"):
        EmbeddingTrainer(toy_model, toy_config(device="auto"))


def test_a_gpu_that_fails_in_its_first_sum_is_an_error(monkeypatch):
    def no_kernel(*args, **kwargs):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore lines")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", no_kernel)
    monkeypatch.setattr(device_module, "_gpu_is_there", lambda: True)
    with pytest.raises(DeviceError, match=r"no kernel image is available for execution on the device\. Update"):
        choose_device("auto")


def test_a_gpu_beside_a_torch_without_cuda_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(device_module, "_gpu_is_there", lambda: True)
    with pytest.raises(DeviceError, match="built without CUDA"):
        choose_device("auto")


# ------------------------------------------------------------------------------------------------------------
# Is a GPU there at all?


@pytest.fixture
def nvidia_smi(monkeypatch):
    """Plays the answer of `nvidia-smi -L`, on a machine without the driver's folder in /proc."""

    def play(answer):
        def run(*args, **kwargs):
            if isinstance(answer, Exception):
                raise answer
            return subprocess.CompletedProcess(args, 0, stdout=answer)

        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(device_module.Path, "glob", lambda self, pattern: iter(()))
        monkeypatch.setattr(device_module.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
        monkeypatch.setattr(device_module.subprocess, "run", run)

    return play


@pytest.mark.parametrize(
    ("answer", "there"),
    [
        (b"GPU 0: NVIDIA GeForce RTX 2080 (UUID: GPU-1)\n", True),
        (b"No devices found.\n", False),
        (b"", False),
        (OSError("not executable"), False),
        (subprocess.TimeoutExpired("nvidia-smi", 10), False),
    ],
)
def test_nvidia_smi_tells_whether_a_gpu_is_there(nvidia_smi, answer, there):
    nvidia_smi(answer)
    assert device_module._gpu_is_there() is there


@pytest.mark.parametrize("value", ["", "-1"])
def test_a_hidden_gpu_counts_as_none(nvidia_smi, monkeypatch, value):
    nvidia_smi(b"GPU 0: NVIDIA GeForce RTX 2080\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert device_module._gpu_is_there() is False


# ------------------------------------------------------------------------------------------------------------
# Number formats


def test_auto_is_bf16_where_the_device_has_it_else_fp16_on_a_gpu_and_fp32_on_a_cpu(monkeypatch):
    for has_it, expected in ((False, ("fp16", "a GPU without bf16")), (True, ("bf16", "the GPU has it"))):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has_it=has_it: has_it)
        assert choose_precision("auto", CUDA) == expected
    without = {"avx512_bf16": False, "amx_bf16": False, "avx512_fp16": True}
    for capabilities in (without | {"avx512_bf16": True}, without | {"amx_bf16": True}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert choose_precision("auto", CPU) == ("bf16", "the CPU has it")
    for capabilities in (without, {"neon": True}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert choose_precision("auto", CPU) == ("fp32", "a CPU without bf16")


@pytest.mark.parametrize("wanted", ["fp16", "bf16", "fp32"])
def test_what_is_asked_for_is_taken(monkeypatch, wanted):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    for device in (CPU, CUDA):
        assert choose_precision(wanted, device) == (wanted, f"precision={wanted} was asked for")


def test_bf16_on_a_turing_gpu_is_refused(monkeypatch, working_gpu):
    # is_bf16_supported() without the argument is true on Turing: it counts the slow emulation.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    with pytest.raises(DeviceError, match="RTX 2080 has no bf16 arithmetic: use --precision fp16"):
        choose_precision("bf16", CUDA)


def test_the_trainer_says_both_choices_with_their_reasons(toy_model, toy_config, caplog):
    with caplog.at_level(logging.INFO):
        trainer = EmbeddingTrainer(toy_model, toy_config(device="cpu", precision="bf16"))
    assert (trainer.device, trainer.precision) == (CPU, "bf16")
    assert "cpu (device=cpu was asked for), in bf16 (precision=bf16 was asked for)" in caplog.text
