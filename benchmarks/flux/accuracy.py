"""Distances of one forward pass and of whole trajectories: ours beside diffusers eager and compiled
and a forward in float32.

Two bfloat16 programs never agree bit by bit. A faithful one may differ as much as the peer differs
from itself when it is compiled, and the one nearer to float32 rounds less.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common.distances import distance
from benchmarks.flux.cases import GUIDANCE, Case
from benchmarks.flux.ours import Ours
from benchmarks.flux.peer import Peer
from predictors.diffusion.inputs import DiffusionWork
from predictors.diffusion.request import LOSSLESS

SLACK = 1.05  # one draw of the noise is not the last word on a spread
LEAST = 1e-5  # float32 sums in another order; nothing beside bfloat16's spread


def velocities(peers: Sequence[Peer], ours: Ours, case: Case) -> dict[str, Any]:
    """One pass at the first, the middle and the last step, all sides on the same inputs."""
    eager = peers[0]
    found: dict[str, Any] = {}
    work = ours.prepare(case, LOSSLESS)
    for index in sorted({0, case.steps // 2, case.steps - 1}):
        answers = {peer.name: peer_velocity(peer, case, work, index) for peer in peers}
        with in_float32(eager.models.transformer):
            exact = peer_velocity(eager, case, work, index, torch.float32)
        for tier in dict.fromkeys((LOSSLESS, *ours.plain_tiers)):
            given = eager.embeddings
            answers[f"here {tier}"] = ours.velocity(given.prompt, given.pooled, case, tier, index)
        found[f"step {index + 1}"] = {
            "to float32": {name: distance(answer, exact) for name, answer in answers.items()},
            f"to {eager.name}": {
                name: distance(answer, answers[eager.name])
                for name, answer in answers.items()
                if name != eager.name
            },
        }
    return found | {"verdict": verdict(found, [peer.name for peer in peers])}


def verdict(found: Mapping[str, Any], peers: Sequence[str]) -> dict[str, bool]:
    """The conditions of the lossless tier, over all steps that were compared."""
    here = f"here {LOSSLESS}"
    eager, *others = peers
    near = [at["to float32"] for at in found.values()]
    apart = [at[f"to {eager}"] for at in found.values()]
    held = {
        "as near to float32 as the farther peer": all(
            at[here] <= LEAST + SLACK * max(at[name] for name in peers) for at in near
        )
    }
    if others:
        held["within the spread of the peers"] = all(
            at[here] <= LEAST + SLACK * max(at[name] for name in others) for at in apart
        )
    return held


def peer_velocity(
    peer: Peer, case: Case, work: DiffusionWork, index: int, dtype: torch.dtype | None = None
) -> Tensor:
    """The peer's transformer as its pipeline calls it, (patches, channels)."""
    weights, given, plan = peer.models.transformer, peer.embeddings, work.plan
    place: dict[str, Any] = {"device": weights.device, "dtype": dtype or weights.dtype}
    if dtype is None:
        # as the pipeline does; the model multiplies by 1000 and so rounds a second time
        timestep = peer.timestep(case, index).to(**place) / 1000
        guidance = torch.tensor([GUIDANCE]).to(**place)
    else:
        # what the model sees after both roundings: the same function, computed more exactly
        timestep = plan.timesteps[index : index + 1].to(**place) / 1000
        guidance = plan.guidance.to(**place) / 1000
    with torch.no_grad():
        velocity: Tensor = weights(
            hidden_states=peer.noise(case)[:1].to(**place),
            timestep=timestep,
            guidance=guidance if weights.config.guidance_embeds else None,
            pooled_projections=given.pooled.to(**place),
            encoder_hidden_states=given.prompt.to(**place),
            txt_ids=torch.zeros(given.prompt.shape[1], 3, **place),
            img_ids=image_ids(plan.rows, plan.columns).to(**place),
            joint_attention_kwargs={},  # as the pipeline, or what was compiled does not fit
            return_dict=False,
        )[0]
    return velocity[0]


def image_ids(rows: int, columns: int) -> Tensor:
    """As the pipeline numbers the patches: (rows * columns, 3), each 0, row, column."""
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    return torch.nn.functional.pad(places, (1, 0)).float()


@contextmanager
def in_float32(transformer: nn.Module) -> Iterator[None]:
    """Inside, its parts compute in float32, on weights that are widened one part at a time: all at
    once would need twice the memory of the rest."""
    parts = [
        unit
        for child in transformer.children()
        for unit in (child if isinstance(child, nn.ModuleList) else [child])
        if any(True for _ in unit.parameters())
    ]
    with ExitStack() as stack:
        for part in parts:
            _widen(part)
            stack.callback(part.__dict__.pop, "forward", None)
        yield


def _widen(part: nn.Module) -> None:
    def forward(*args: Any, **kwargs: Any) -> Any:
        del part.__dict__["forward"]  # below, its own forward is meant
        try:
            wide = {name: weight.float() for name, weight in part.named_parameters()}
            return torch.func.functional_call(part, wide, args, kwargs)
        finally:
            part.__dict__["forward"] = forward

    part.__dict__["forward"] = forward


def trajectories(peers: Sequence[Peer], ours: Ours, case: Case) -> dict[str, Any]:
    """Latents after all steps: distance to diffusers eager and to our lossless tier, and whether
    every value is finite. This run also fills caches and compiles."""
    latents = {peer.name: peer.latents(case) for peer in peers}
    given = peers[0].embeddings
    ours.remember(given.prompt, given.pooled, case)
    latents |= {f"here {tier}": ours.latents(case, tier) for tier in ours.tiers}
    eager, lossless = latents[peers[0].name], latents[f"here {LOSSLESS}"]
    return {
        name: {
            "finite": bool(torch.isfinite(found).all()),
            f"to {peers[0].name}": distance(found, eager),
            f"to here {LOSSLESS}": distance(found, lossless),
        }
        for name, found in latents.items()
    }
