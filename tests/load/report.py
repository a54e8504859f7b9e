"""Results of the load runs as files, tables and pictures, and the table of what must be shown."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import paths
from benchmarks.common.machine import machine
from benchmarks.common.run import write_json
from benchmarks.common.tables import columns
from tests.load.target import Cores

Found = Mapping[str, Any]
PICTURES = paths.ROOT / "docs" / "pictures"
PACKAGES = ("torch", "grpcio", "uvloop", "httpx")
KEPT = 0.9
REFUSALS_MS = 50.0
PROBES_MS = 100.0
LEAST_REQUESTS = 20_000


def path_of(name: str, folder: Path = paths.RESULTS) -> Path:
    return folder / f"load-{name}.json"


def save(name: str, found: Found, cores: Cores, folder: Path, remark: str) -> None:
    about = {
        "machine": machine(PACKAGES), "commit": commit(), "remark": remark,
        "generator_core": cores.generator, "server_cores": list(cores.server),
    }  # fmt: skip
    write_json(path_of(name, folder), {**about, **found})


def commit() -> str:
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    told = subprocess.run(asked, cwd=paths.ROOT, capture_output=True, text=True, check=False)
    return told.stdout.strip() or "unknown"


def read(name: str, folder: Path = paths.RESULTS) -> dict[str, Any]:
    """A results file; empty if there is none."""
    path = path_of(name, folder)
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


# -- tables --------------------------------------------------------------------------------------
def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def curve_rows(found: Found) -> Iterator[tuple[str, ...]]:
    yield (
        "mix", "load", "offered/s", "accepted/s", "refused/s", "goodput/s", "kept", "work kept",
        "p50 ms", "p95 ms", "p99 ms", "TTFT p95", "refusal p99", "health p99", "metrics p99",
        "wrong", "lag p99", "valid",
    )  # fmt: skip
    for mix, one in found.get("curves", {}).items():
        for each in one["points"]:
            probes = each["probes"]
            yield tuple(
                map(_cell, (
                    mix, f"{100 * each['share']:.0f} %", each["offered"], each["accepted"],
                    each["refused"], each["good"], each["kept_good"], each["kept_good_work"],
                    each["p50_ms"], each["p95_ms"], each["p99_ms"], each["first_p95_ms"],
                    each["refusal_p99_ms"], probes["health"]["p99_ms"], probes["metrics"]["p99_ms"],
                    f"{each['wrong']} of {each['compared']}", each["lag_p99_ms"], each["is_valid"],
                ))
            )  # fmt: skip


def curve_page_rows(found: Found) -> Iterator[tuple[str, ...]]:
    """The columns that fit a page."""
    kept = [0, 1, 2, 4, 5, 6, 7, 9, 10, 12, 13, 14, 15, 17]
    for row in curve_rows(found):
        yield tuple(row[i] for i in kept)


def greedy_rows(found: Found) -> Iterator[tuple[str, ...]]:
    yield ("engine", "greedy caller", "connections", "other alone p95 ms", "beside p95 ms",
           "step ms", "times", "other answered", "refused", "met")  # fmt: skip
    for each in found.get("greedy", ()):
        answered = f"{each['answered_beside']} of {each['asked_beside']}"
        yield tuple(
            map(_cell, (
                each["room"], each["greedy"], each["connections"], each["alone_p95_ms"],
                each["beside_p95_ms"], each["step_ms"], each["times"], answered, each["refused"],
                each["is_met"],
            ))
        )  # fmt: skip


def equal_rows(found: Found) -> Iterator[tuple[str, ...]]:
    yield "engine", "both ask for", "connections", "shares", "met"
    for each in found.get("equals", ()):
        first, second = each["connections"]
        shares = " : ".join(f"{100 * share:.0f} %" for share in each["shares"])
        ran = each["room"], each["mix"], f"{first} : {second}", shares
        yield (*ran, _cell(each["is_met"]))


def sigterm_rows(found: Found) -> Iterator[tuple[str, ...]]:
    yield ("seed", "non-readers", "jobs at signal", "answered", "refused", "lost", "exit code",
           "ended s", "grace s", "met")  # fmt: skip
    for each in found.get("repetitions", ()):
        fates = each["fates"]
        refused = sum(count for fate, count in fates.items() if fate.startswith("refused"))
        yield tuple(
            map(_cell, (
                each["seed"], each["with_non_readers"], each["jobs_at_signal"],
                fates.get("answered", 0), refused, len(each["lost"]), each["exit_code"],
                each["ended_s"], each["grace_s"], each["is_met"],
            ))
        )  # fmt: skip


def flat_rows(found: Found) -> Iterator[tuple[str, ...]]:
    yield "requests", "RSS MiB", "own MiB", "fds", "threads", "processes"
    for each in found.get("held", ()):
        yield tuple(
            map(_cell, (
                int(each["at_s"]), each["rss_mib"], each["own_mib"], each["fds"],
                each["threads"], each["processes"],
            ))
        )  # fmt: skip


def table(rows: Iterator[tuple[str, ...]]) -> str:
    return columns(list(rows))


# -- what must be shown ----------------------------------------------------------------------------
def shown(curves: Found, flat: Found, greedy: Found, sigterm: Found) -> list[tuple[str, ...]]:
    """(what, asked for, measured, met) for each line of the issue that these runs answer."""
    rows = [("what", "asked for", "measured", "met")]
    for mix, one in curves.get("curves", {}).items():
        rows += _curve_shown(mix, one)
    runs = [each for one in curves.get("curves", {}).values() for each in one["points"]]
    runs += [flat] if flat else []
    if runs:
        rows += _counts_shown(runs)
    if flat:
        slope = f"{flat['own_mib_per_1000']} MiB per 1,000; fds {_span(flat['fds'])}"
        told = f"{slope}; threads {_span(flat['threads'])}"
        what = f"{flat['requests']} requests, {100 * flat['leavers']:.0f} % leavers"
        rows.append((what, "flat", told, _cell(flat["is_flat"])))
    for each in greedy.get("greedy", ()):
        what = f"{each['room']}: another's p95 beside {each['connections']} x {each['greedy']}"
        rows.append((what, "<= 2.2 x + a step", f"{_cell(each['times'])} x", _cell(each["is_met"])))
    for each in greedy.get("equals", ()):
        what = f"{each['room']}: two equals, {_span(each['connections'])} connections"
        least = f"{100 * min(each['shares']):.0f} %"
        rows.append((what, ">= 45 % each", least, _cell(each["is_met"])))
    ended = sigterm.get("repetitions", ())
    if ended:
        lost = sum(len(each["lost"]) for each in ended)
        is_met = all(each["is_met"] for each in ended)
        what = f"SIGTERM, {len(ended)} times"
        rows.append((what, "0 lost, in the grace period", f"{lost} lost", _cell(is_met)))
    return rows


def _span(pair: Sequence[int]) -> str:
    return f"{pair[0]} : {pair[1]}"


def _curve_shown(mix: str, one: Found) -> Iterator[tuple[str, ...]]:
    points = one["points"]
    last = points[-1]
    load = f"{100 * last['share']:.0f} %"
    kept = last["kept_good"]
    yield f"{mix}: goodput at {load}", ">= 90 % of peak", f"{100 * kept:.0f} %", _cell(kept >= KEPT)
    waited = [each["refusal_p99_ms"] for each in points if each["refusal_p99_ms"] is not None]
    slowest = max(waited, default=0.0)
    yield (f"{mix}: refusals p99", "< 50 ms", f"{slowest} ms", _cell(slowest < REFUSALS_MS))
    probes = [each["probes"][name]["p99_ms"] for each in points for name in ("health", "metrics")]
    failures = sum(each["probes"]["failures"] for each in points)
    is_met = max(probes) <= PROBES_MS and not failures
    yield f"{mix}: health and metrics p99", "<= 100 ms", f"{max(probes)} ms", _cell(is_met)


def _counts_shown(runs: Sequence[Found]) -> Iterator[tuple[str, ...]]:
    requests = sum(each["requests"] for each in runs)
    lost = sum(
        each["outcomes"].get(name, 0) for each in runs for name in ("unanswered", "unconnected")
    )
    failed = sum(each["outcomes"].get("failed", 0) for each in runs)
    is_met = not lost and not failed and requests >= LEAST_REQUESTS
    asked = f"0 of >= {LEAST_REQUESTS}"
    yield "accepted and unanswered", asked, f"{lost} + {failed} of {requests}", _cell(is_met)
    compared, wrong = (sum(each[name] for each in runs) for name in ("compared", "wrong"))
    is_met = not wrong and compared > 0
    yield "answers that differ from solo", "0", f"{wrong} of {compared}", _cell(is_met)
