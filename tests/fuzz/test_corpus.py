"""Every stored input is read with its meaning or refused; cases depend on their seed alone."""

from __future__ import annotations

import base64
import shlex
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.__main__ import main, replay
from tests.fuzz.findings import Finding, finding_of, minimised
from tests.fuzz.http_campaign import stream_of
from tests.fuzz.mutation import make_input, problem_of, run
from tests.fuzz.seeds import CORPUS, SEEDS, kept, stored
from tests.fuzz.targets import TARGETS, with_checksums


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_every_stored_input_is_read_or_refused(target: str) -> None:
    problems = {raw: problem_of(target, raw) for raw in stored(target)}
    assert {raw: found for raw, found in problems.items() if found is not None} == {}


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_the_first_inputs_of_every_form_are_accepted(target: str) -> None:
    refused = [raw for raw in SEEDS[target]() if not TARGETS[target](raw)]
    # a web address, and a body that inflates beyond the limit
    assert len(refused) == {"data_url": 1, "inflating": 1}.get(target, 0), refused


def test_the_corpus_is_small_and_belongs_to_the_targets() -> None:
    assert {path.name for path in CORPUS.iterdir()} <= set(TARGETS)
    assert sum(path.stat().st_size for path in CORPUS.iterdir()) < 500_000
    assert max(len(raw) for target in TARGETS for raw in kept(target).values()) <= 4096


def test_a_case_depends_on_its_seed_and_number_alone() -> None:
    seeds = stored("v2")
    assert make_input("v2", seeds, 1, 7) == make_input("v2", seeds, 1, 7)
    assert len({make_input("v2", seeds, 1, case) for case in range(50)}) > 25
    assert [stream_of(2, case) for case in range(9)] == [stream_of(2, case) for case in range(9)]


def test_a_minimised_input_still_shows_the_finding() -> None:
    random = Random(5)
    raw = bytes(random.randrange(256) for _ in range(3000)) + b"<x>" + bytes(500)
    assert minimised(raw, lambda less: b"<x>" in less) == b"<x>"


def test_a_finding_is_minimised_and_replayed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a reader that fails for some inputs."""

    def fails(raw: bytes) -> bool:
        if b"datatype" in raw:
            raise KeyError("datatype")
        return True

    monkeypatch.setitem(TARGETS, "v2", fails)
    (found,) = run("v2", 1, 200, tmp_path / "case")
    assert (found.kind, found.raw) == ("error", b"datatype")
    assert make_input("v2", stored("v2"), found.seed, found.case).find(b"datatype") >= 0
    assert finding_of(found.as_json()) == found
    assert int((tmp_path / "case").read_bytes()) == 199
    *_, part, data = shlex.split(found.report().splitlines()[-1])
    assert replay(part, base64.b64decode(data)) == 1
    assert "error: KeyError" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["fuzz", "replay", "json", base64.b64encode(b"{}").decode()])
    assert main() == 0


def test_a_report_tells_the_seed_the_input_and_how_to_replay_it() -> None:
    text = Finding("image", "crash", 3, 12, "exit status -11", b"\0a").report()
    assert "seed 3, case 12" in text
    assert repr(b"\0a") in text
    assert "python -m tests.fuzz replay image AGE=" in text


def test_checksums_are_made_right() -> None:
    raw = next(SEEDS["png"]())
    assert with_checksums(raw) == raw
    assert with_checksums(raw[:40] + b"\x01" + raw[41:]) != raw
