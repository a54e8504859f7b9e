"""Finds the memory and the fp8 units of this machine's GPU without torch: by NVML where the extra
`gpu` is installed, else by the driver's `nvidia-smi`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping

from predictors.compute.checkpoint.summary import CardFacts
from predictors.compute.watch.nvml import open_library

FP8_CAPABILITY = (8, 9)  # Ada; Hopper and Blackwell have it too
QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits")
TIMEOUT_S = 10.0  # a driver with a fault may hang


def find_card_facts(device: str, environ: Mapping[str, str]) -> CardFacts:
    """The GPU that `compute.device` names, counted among `CUDA_VISIBLE_DEVICES`; without a GPU, a
    driver or an answer, nothing is known."""
    index = _visible_index(device, environ)
    if index is None:
        return CardFacts()
    return _by_library(index) or _by_command(index) or CardFacts()


def _visible_index(device: str, environ: Mapping[str, str]) -> int | None:
    """The driver's number of the device; None for the CPU and for devices named by UUID."""
    kind, _, number = device.partition(":")
    if kind == "cpu" or (number and not number.isdecimal()):
        return None
    place = int(number or 0)
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return place
    named = [part.strip() for part in visible.split(",")]
    return int(named[place]) if place < len(named) and named[place].isdecimal() else None


def _by_library(index: int) -> CardFacts | None:
    library = open_library()
    if library is None:
        return None
    try:
        handle = library.nvmlDeviceGetHandleByIndex(index)
        name = library.nvmlDeviceGetName(handle)
        return CardFacts(
            memory_bytes=int(library.nvmlDeviceGetMemoryInfo(handle).total),
            has_fp8=tuple(library.nvmlDeviceGetCudaComputeCapability(handle)) >= FP8_CAPABILITY,
            name=name if isinstance(name, str) else name.decode("ascii", "replace"),
        )
    except library.NVMLError:
        return None


def _by_command(index: int) -> CardFacts | None:
    try:
        found = subprocess.run(
            [*QUERY, f"--id={index}"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        name, mebibytes, capability = (part.strip() for part in found.stdout.strip().split(","))
        major, minor = (int(part) for part in capability.split("."))
        return CardFacts(int(mebibytes) * 2**20, (major, minor) >= FP8_CAPABILITY, name)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
