"""The Qwen tables of docs/performance.md, made from benchmarks/results/qwen_vl.json. Knows what a
table says and where it stands on the page; measures nothing.

A table stands between `<!-- qwen_vl NAME -->` and `<!-- end -->`; what was not measured is said in
its place. `python -m benchmarks.qwen_vl.tables` writes the page; a test holds the page to the
file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.common import paths
from benchmarks.qwen_vl import floors as qwen_vl_floors
from benchmarks.qwen_vl import goals as qwen_vl_goals
from benchmarks.qwen_vl.floors import Rates
from benchmarks.qwen_vl.report import cases, latencies, rates, share_of_floor

PAGE = paths.ROOT / "docs" / "performance.md"
RESULTS = paths.RESULTS / "qwen_vl.json"
PLACE = re.compile(r"<!-- qwen_vl (\w+) -->\n.*?<!-- end -->", re.DOTALL)
MISSING = "Not measured yet."

Found = Mapping[str, Any]
Rows = Iterator[tuple[str, ...]]


def machine(found: Found) -> Rows:
    """What it ran on."""
    if "make" not in found:
        return
    yield "the machine of the Qwen tables", ""
    known = found["make"]["machine"]
    for name in (
        "gpu",
        "gpu_memory_gib",
        "cores",
        "torch",
        "cuda",
        "triton",
        "transformers",
        "date",
    ):
        if known.get(name) is not None:
            yield name.replace("_", " "), str(known[name])
    ceilings = found.get("ceilings", {})
    if "bf16" in ceilings:
        yield "matmul, bf16", f"{ceilings['bf16'] / 1e12:.0f} TFLOP/s"
        yield "copy, read and write", f"{ceilings['copy_bytes_per_s'] / 1e12:.2f} TB/s"
    for name, value in found["options"]["settings"].items():
        yield f"`PREDICTORS_{name}`", str(value)


def clients(found: Found) -> Rows:
    """Our server by streaming clients."""
    rows = {name: row for name, row in cases(found, "http").items() if "requests_per_s" in row}
    if not rows:
        return
    yield (
        "clients x prompt", "requests", "first token ms, p50", "p99", "ms per token, mean", "p99",
        "between texts ms, p99", "requests/s", "tokens/s", "of floor",
    )  # fmt: skip
    for name, row in rows.items():
        share = share_of_floor(row, found.get("ceilings", {}))
        told = "-" if share is None else f"{100 * share:.0f} %"
        yield name, *latencies(row), *rates(row), told


def goals(found: Found) -> Rows:
    """What was asked for, reached or not."""
    held = qwen_vl_goals.held(found)
    if not held:
        return
    yield "Qwen goal", "measured", "asked for", "reached", "wished for", "vLLM 0.24 on an H100"
    for goal in held:
        other = qwen_vl_goals.VLLM.get(goal["case"], {}).get(goal["figure"])
        yield (
            f"{goal['case']}: {goal['figure']}",
            f"{goal['measured']:.4g}",
            f"at {goal['at']} {goal['limit']:g}",
            "yes" if goal["held"] else "**no**",
            "-" if goal["wish"] is None else f"{goal['wish']:g}",
            "-" if other is None else f"{other:g}",
        )


def compiling(found: Found) -> Rows:
    """A step of one row by everybody."""
    peer = _peer(found)
    steps = {(r["rows"], r["prompt"]): r for r in found.get("ours", {}).get("decode steps", ())}
    served = {str(n): r for n, r in found.get("http", {}).items() if str(n).startswith("1 x ")}
    if not peer or not (steps or served):
        return
    yield "torch.compile and what came after", "prompt", "first token, ms", "ms per token"
    for name, row in peer.items():
        way, _, case = name.partition(", 1 x ")
        if case:
            yield way, case, f"{row['ttft_ms']:.1f}", f"{row['tpot_ms']:.2f}"
    for (rows, prompt), row in steps.items():
        if rows == 1:
            first = _first_ms(found, prompt)
            told = "-" if first is None else f"{first:.1f}"
            yield "here, in process", prompt, told, f"{row['step_ms']:.2f}"
    for name, row in served.items():
        first_token, per_token = f"{row['ttft_ms_p50']:.1f}", f"{row['tpot_ms_mean']:.2f}"
        yield "here, through the server", name.removeprefix("1 x "), first_token, per_token


def _peer(found: Found) -> dict[str, Any]:
    rows = found.get("peer", {}).items()
    return {name: row for name, row in rows if isinstance(row, dict) and "tpot_ms" in row}


def _first_ms(found: Found, prompt: str) -> float | None:
    """Prepared and read, as the peer's."""
    ours = found["ours"]
    read, made = ours.get("first tokens", {}).get(prompt), ours.get("prepare_ms", {}).get(prompt)
    return None if read is None or made is None else read["ms"] + made


def syncing(found: Found) -> Rows:
    """Steps launched ahead of the last one's tokens, and not."""
    read = found.get("ours", {}).get("read at once", ())
    ahead = {(r["rows"], r["prompt"]): r for r in found.get("ours", {}).get("decode steps", ())}
    if not read or not ahead:
        return
    yield "rows", "each step read before the next, ms per step", "next step launched first", "gain"
    for row in read:
        before, after = row["step_ms"], ahead[row["rows"], row["prompt"]]["step_ms"]
        yield (
            str(row["rows"]),
            f"{before:.2f}",
            f"{after:.2f}",
            f"{100 * (before / after - 1):+.0f} %",
        )


def attention(found: Found) -> Rows:
    """Torch's kernels at this model's shapes."""
    shapes = found.get("attention", {})
    if not shapes:
        return
    kernels = list(next(iter(shapes.values())))
    yield "attention, ms (TFLOP/s)", *kernels
    for name, by in shapes.items():
        yield name, *(_speed(by[kernel]) for kernel in kernels)


def _speed(cell: Mapping[str, Any]) -> str:
    return "-" if cell["ms"] is None else f"{cell['ms']:.3f} ({cell['tflops']:.0f})"


def steps(found: Found) -> Rows:
    """The engine alone, beside the floor of reading weights, keys and values once."""
    rows, ceilings = found.get("ours", {}).get("decode steps", ()), found.get("ceilings", {})
    if not rows or "copy_bytes_per_s" not in ceilings:
        return
    rates = Rates.of(ceilings)
    yield "rows that decode", "after", "ms per step", "p99", "floor", "of floor", "tokens/s"
    for row in rows:
        floor = qwen_vl_floors.decode_ms(rates, row["rows"], row["tokens"])
        yield (
            str(row["rows"]),
            row["prompt"],
            f"{row['step_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            f"{floor:.2f}",
            f"{100 * floor / row['step_ms']:.0f} %",
            f"{1e3 * row['rows'] / row['step_ms']:.0f}",
        )


def firsts(found: Found) -> Rows:
    """First tokens in process, and what they are made of."""
    rows = found.get("ours", {}).get("first tokens", {})
    made = found.get("ours", {}).get("prepare_ms", {})
    if not rows:
        return
    yield (
        "prompt", "preparing (a CPU thread), ms", "to the first token, ms", "the picture's part",
        "picture known, prompt read anew", "picture and pages known",
    )  # fmt: skip
    for name, row in rows.items():
        keys = ("ms", "picture's part", "known picture, prompt read anew", "known picture first")
        cells = (f"{row[key]:.1f}" if key in row else "-" for key in keys)
        yield name, f"{made[name]:.1f}" if name in made else "-", *cells


def logits(found: Found) -> Rows:
    """Distances to float32 over an answer."""
    rows = {n: r for n, r in found.get("accuracy", {}).items() if "peer to float32" in r}
    if not rows:
        return
    yield (
        "prompt, random weights at full size", "transformers bf16 to float32", "here to float32",
        "here to transformers bf16", "same choice as float32: transformers / here",
    )  # fmt: skip
    for name, row in rows.items():
        yield (
            name,
            f"{row['peer to float32']:.4f}",
            f"{row['ours to float32']:.4f}" if "ours to float32" in row else "-",
            f"{row['ours to peer']:.4f}" if "ours to peer" in row else "-",
            f"{100 * row['peer as float32']:.0f} % / {100 * row['ours as float32']:.0f} %",
        )


def memory(found: Found) -> Rows:
    """Over the rounds of the soak."""
    rounds = found.get("soak", {}).get("rounds", ())
    if not rounds:
        return
    yield "requests so far", "failed", "host memory, MiB", "device memory, MiB"
    for row in rounds:
        device = "-" if row["device_bytes"] is None else f"{row['device_bytes'] / 2**20:.0f}"
        host = f"{row['host_bytes'] / 2**20:.0f}"
        yield str(row["requests"]), str(row["failed"]), host, device


TABLES: Mapping[str, Callable[[Found], Rows]] = {
    "machine": machine,
    "clients": clients,
    "goals": goals,
    "compiling": compiling,
    "syncing": syncing,
    "attention": attention,
    "steps": steps,
    "firsts": firsts,
    "logits": logits,
    "memory": memory,
}


def table(name: str, found: Found) -> str:
    """One table as Markdown, or that there is none."""
    rows = [f"| {' | '.join(cells)} |" for cells in TABLES[name](found)]
    if not rows:
        return MISSING
    rule = "|" + "---|" * (rows[0].count(" | ") + 1)
    return "\n".join((rows[0], rule, *rows[1:]))


def written(page: str, found: Found) -> str:
    """The page with every table made anew."""

    def made(place: re.Match[str]) -> str:
        return f"<!-- qwen_vl {place[1]} -->\n{table(place[1], found)}\n<!-- end -->"

    return PLACE.sub(made, page)


def results() -> dict[str, Any]:
    """What the benchmark wrote; empty if it has not run."""
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def main() -> None:
    """Write the page."""
    PAGE.write_text(written(PAGE.read_text(), results()))


if __name__ == "__main__":
    main()
