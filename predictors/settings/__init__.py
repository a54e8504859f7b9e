"""Every setting of the process, as frozen dataclasses, one per group. `environment.py` reads them.

Each field has its default, its range or choices and its description in one place.
`docs/configuration.md` and the chart's schema are generated from these files.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from predictors.settings.access import AccessSettings
from predictors.settings.activator import ActivatorSettings
from predictors.settings.bounds import (
    AUTO_ON_OFF,
    PREFIX,
    Bounds,
    InvalidSetting,
    SettingsGroup,
    bounds_of,
    variable_name,
)
from predictors.settings.models import (
    ATTENTION,
    MOST_RANK,
    ComputeSettings,
    FluxSettings,
    QueueSettings,
    QwenVLSettings,
)
from predictors.settings.overload import OverloadSettings
from predictors.settings.server import ClusterSettings, FilmLimits, ImageLimits, ServerSettings
from predictors.settings.sharing import SharingSettings
from predictors.settings.tls import TlsSettings

__all__ = [
    "ALIASES", "ATTENTION", "AUTO_ON_OFF", "MOST_RANK", "PREFIX", "AccessSettings",
    "ActivatorSettings", "Bounds", "ClusterSettings", "ComputeSettings", "FilmLimits",
    "FluxSettings", "ImageLimits", "InvalidSetting", "OverloadSettings", "QueueSettings",
    "QwenVLSettings", "ServerSettings", "Settings", "SettingsGroup", "SharingSettings",
    "TlsSettings", "bounds_of", "variable_name",
]  # fmt: skip

ALIASES = {
    "PREDICTORS_SERVER_HOST": "HOST",
    "PREDICTORS_SERVER_PORT": "PORT",
    "PREDICTORS_SERVER_GRPC_PORT": "GRPC_PORT",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """All groups."""

    server: ServerSettings = field(default_factory=ServerSettings)
    access: AccessSettings = field(default_factory=AccessSettings)
    tls: TlsSettings = field(default_factory=TlsSettings)
    overload: OverloadSettings = field(default_factory=OverloadSettings)
    queue: QueueSettings = field(default_factory=QueueSettings)
    images: ImageLimits = field(default_factory=ImageLimits)
    films: FilmLimits = field(default_factory=FilmLimits)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    sharing: SharingSettings = field(default_factory=SharingSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    flux: FluxSettings = field(default_factory=FluxSettings)
    qwen_vl: QwenVLSettings = field(default_factory=QwenVLSettings)
    activator: ActivatorSettings = field(default_factory=ActivatorSettings)

    def with_adapter_room(self, task: str, count: int) -> Settings:
        """These with a place on the device for each of so many adapters of a model of `task`
        (`flux`, `qwen_vl`), unless they say how many there are."""
        own = getattr(self, task)
        if not count or own.lora_max_active:
            return self
        changed: dict[str, Any] = {task: replace(own, lora_max_active=count)}
        return replace(self, **changed)

    def with_adapter_rank(self, rank: int) -> Settings:
        """These with room for adapters of this rank, for a model of either task, unless they say
        how large one may be."""
        flux, qwen_vl = self.flux, self.qwen_vl
        if not flux.lora_max_rank:
            flux = replace(flux, lora_max_rank=max(rank, flux.adapter_rank))
        if not qwen_vl.lora_max_rank:
            qwen_vl = replace(qwen_vl, lora_max_rank=max(rank, qwen_vl.adapter_rank))
        return replace(self, flux=flux, qwen_vl=qwen_vl)

    def with_all_warm(self) -> Settings:
        """These with every promised shape warm before a model is ready."""
        flux, qwen_vl = replace(self.flux, warm="all"), replace(self.qwen_vl, warm="all")
        return replace(self, flux=flux, qwen_vl=qwen_vl)
