"""The machine and the package versions of a measurement, as plain values for its results file."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

GPU_PACKAGES = ("torch", "diffusers", "transformers", "pillow", "fa3-fwd")


def machine(packages: Sequence[str] = GPU_PACKAGES, device: str = "cpu") -> dict[str, Any]:
    """Processor, cores, versions and date; on CUDA the card. None for a package not installed."""
    return {
        **(_card(device) if device.startswith("cuda") else {}),
        "device": device.partition(":")[0],
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "date": time.strftime("%Y-%m-%d"),
    }


def _card(device: str) -> dict[str, Any]:
    import torch

    card = torch.cuda.get_device_properties(device)
    return {
        "gpu": card.name,
        "gpu_memory_gib": round(card.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": version("triton"),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if "model name" in line)
    return next(names, "") or platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # such as fp8 attention's, which is optional
        return None
