"""The colocated benchmark's options: which policy its server starts with, and where figures go."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from benchmarks.colocated import __main__ as colocated
from benchmarks.colocated.driver import FULL, POLICIES
from benchmarks.common import paths
from predictors.compute.device.placement import place
from predictors.compute.device.sharing import SharedCard


@pytest.mark.parametrize("policy", POLICIES)
def test_only_a_server_that_starts_with_turns_cuts_a_step(policy: str) -> None:
    settings = colocated.settings_for(1, "cpu", FULL, policy)
    card = SharedCard.of(settings.sharing, place(settings.compute))
    assert card.policy.kind == policy
    assert (card.step_pieces > 1) == (policy == "turns")


def test_one_policy_alone_has_a_results_file_of_its_own() -> None:
    def file_of(policy: str | None, *, toy: bool) -> Path:
        return colocated.results_of(argparse.Namespace(policy=policy, toy=toy))

    assert file_of(None, toy=False) == paths.RESULTS / "colocated.json"
    assert file_of("priority", toy=False) == paths.RESULTS / "colocated_priority.json"
    assert file_of("priority", toy=True) == paths.SCRATCH / "colocated_priority.json"
