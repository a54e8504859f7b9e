"""Writes bitsandbytes.safetensors with bitsandbytes itself: weights, what it stores for each, and
what it makes of that again.

`python -m tests.compute.checkpoint.quantised.golden.make`, in an environment that has bitsandbytes.
It is not in `dev`: diffusers imports it into every process once it is installed, which takes
seconds.
"""

from __future__ import annotations

from pathlib import Path

import bitsandbytes
import torch
from bitsandbytes import functional
from safetensors.torch import save_file

FILE = Path(__file__).with_name("bitsandbytes.safetensors")


def in_four_bits(
    weight: torch.Tensor, kind: str, block: int, *, nested: bool
) -> dict[str, torch.Tensor]:
    packed, state = functional.quantize_4bit(
        weight, blocksize=block, quant_type=kind, compress_statistics=nested
    )
    found = {f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    back = functional.dequantize_4bit(packed, state)
    return found | {"weight": packed, "dequantised": back, "original": weight}


def in_eight_bits(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    narrow, scales, _ = functional.int8_vectorwise_quant(weight.half())
    back = functional.int8_vectorwise_dequant(narrow, scales)
    return {"weight": narrow, "SCB": scales, "dequantised": back, "original": weight}


def main() -> None:
    generator = torch.Generator().manual_seed(5)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).half().float()

    cases = {
        "nf4": in_four_bits(drawn(24, 40), "nf4", 64, nested=False),
        "fp4": in_four_bits(drawn(24, 40), "fp4", 64, nested=False),
        "ragged": in_four_bits(drawn(5, 27), "nf4", 64, nested=False),
        "nested": in_four_bits(drawn(130, 128), "nf4", 64, nested=True),
        "int8": in_eight_bits(drawn(12, 20)),
    }
    tensors = {
        f"{case}.{name}": tensor.contiguous()
        for case, found in cases.items()
        for name, tensor in found.items()
    }
    save_file(tensors, FILE, {"bitsandbytes": bitsandbytes.__version__})


if __name__ == "__main__":
    main()
