"""Settings of the activator, the proxy before a model that may have no pod (`predictors
activator`).
"""

from __future__ import annotations

from dataclasses import dataclass

from predictors.settings.bounds import SettingsGroup, bounded


@dataclass(frozen=True, slots=True)
class ActivatorSettings(SettingsGroup):
    """The proxy before a model that is scaled to zero. Only `predictors activator` reads these,
    beside `server.*` for its own ports and times."""

    section = "activator"

    max_held: int = bounded(100, least=1)
    """Requests that may wait for the model to start, of all protocols together. The next one is
    refused with 503 and `Retry-After`."""
    max_held_bytes: int = 256 * 2**20
    """Bytes that bodies of waiting HTTP requests and gRPC messages on their way to the model may
    have together. A request beyond that is refused with 503, over gRPC with RESOURCE_EXHAUSTED. Not
    counted: a flow-control window of 64 KiB of each waiting gRPC call, and messages that still
    arrive (`server.max_arriving_messages`)."""
    max_wait_s: float = bounded(300.0, least=0.1)
    """Longest time that a request waits for the model. After it the answer is 504 with
    `Retry-After`; the start goes on. It should be longer than a cold start."""
    probe_s: float = bounded(0.25, least=0.01)
    """While requests wait, the model's readiness is asked for this often, in seconds."""
    scale_s: float = bounded(2.0, least=0.05)
    """While requests wait, the Deployment's replicas are looked at this often, in seconds, and set
    to 1 where they are 0. Something else may have set them back."""
    connect_timeout_s: float = bounded(2.0, least=0.05)
    """A connection to the model that takes longer counts as none: the request waits. Some networks
    drop packets to a Service without endpoints instead of refusing them."""
