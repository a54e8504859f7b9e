"""Options of a run of the Qwen benchmark, passed to each of its parts as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from benchmarks.qwen_vl.sizes import SIZES, THREE, Config


@dataclass(frozen=True, slots=True)
class QwenVLOptions:
    folder: str
    """Of the random checkpoint; it is made if it is not there."""
    device: str
    is_toy: bool
    slots: int
    settings: Mapping[str, str] = field(default_factory=dict)
    """Of our server, by name after `PREDICTORS_`, such as `QWEN_VL_PREFILL_CHUNK`."""
    cases: str = ""
    """Of the clients' cases, comma-separated; all if empty."""
    size: str = THREE.name
    """Of the model, by its name in `sizes.SIZES`."""
    has_probe: bool = False
    """True to time the phases of our server's steps."""

    @property
    def config(self) -> Config:
        """Of the checkpoint: what differs from the embedded one's."""
        return SIZES[self.size].config(is_toy=self.is_toy)

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, raw: str) -> QwenVLOptions:
        return cls(**json.loads(raw))

    def server_settings(self) -> dict[str, str]:
        return {
            "QWEN_VL_SLOTS": str(self.slots),
            "QWEN_VL_MAX_PIXELS": "12845056",
            "QUEUE_CAPACITY": str(4 * self.slots),
            "COMPUTE_DEVICE": self.device,
            "SERVER_PREPARE_THREADS": "8",
            "SERVER_ACCESS_LOG": "false",
            "SERVER_LOG_LEVEL": "warning",
            **self.settings,
        }
