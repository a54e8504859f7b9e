"""Settings of one card that models of both kinds share: who runs when."""

from __future__ import annotations

from dataclasses import dataclass

from predictors.settings.bounds import SettingsGroup, bounded


@dataclass(frozen=True, slots=True)
class SharingSettings(SettingsGroup):
    """Turns of picture models and chat models that one process serves on one card. No effect on one
    kind alone. `memory_fraction` of each kind divides the memory."""

    section = "sharing"

    policy: str = bounded("auto", choices=("auto", "turns", "priority", "none"))
    """`turns`: a denoise step is cut into `step_pieces`, and between two of them a step of tokens
    may run; each runs alone. `priority`: both run at once, the kernels of tokens before those of
    pictures. `none`: everything runs in the order in which it was launched, so a token waits for
    whole denoise steps. `auto`: `turns` on a GPU, `none` on the CPU."""
    picture_share: float = bounded(0.8, least=0.05, most=0.95)
    """`turns`: part of the card's time that pictures get while both have work. A step of tokens
    that took 5 ms is followed by 20 ms for pictures at 0.8. What one side does not use, the other
    gets at once."""
    token_wait_ms: float = bounded(30.0, most=10_000.0)
    """`turns`: longest time that a step of tokens waits for its turn, whatever `picture_share`
    says. Then at most two pieces that were launched before are run first."""
    step_pieces: int = bounded(12, least=1, most=57)
    """`turns`: CUDA graphs per denoise step. More of them let tokens in sooner, and each costs the
    launch of a graph. A decode or an encoder of a picture is one piece."""
