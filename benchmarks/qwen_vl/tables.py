"""The Qwen tables of docs/performance.md and of the README, made from the results of
`benchmarks.qwen_vl`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common.goals import goal_cells
from benchmarks.common.journal import Rows, Tables
from benchmarks.qwen_vl import goals as qwen_vl_goals
from benchmarks.qwen_vl.floors import Rates
from benchmarks.qwen_vl.quoted import PROMPTS, beside
from benchmarks.qwen_vl.shares import decode_share, floors_of, percent, share_of_floor
from benchmarks.qwen_vl.sizes import size_of

Found = Mapping[str, Any]


def cases(found: Mapping[str, Any], part: str) -> dict[str, dict[str, Any]]:
    return {name: row for name, row in found.get(part, {}).items() if _is_case(row)}


def _is_case(row: object) -> bool:
    return isinstance(row, dict) and "case" in row


def latencies(row: Mapping[str, Any]) -> tuple[str, ...]:
    """How many requests, first token p50 and p99, per token mean and p99, between tokens p99."""
    failed = f" ({row['failed']} failed)" if row["failed"] else ""
    return (
        f"{row['requests']}{failed}",
        f"{row['ttft_ms_p50']:.1f}",
        f"{row['ttft_ms_p99']:.1f}",
        f"{row['tpot_ms_mean']:.2f}",
        f"{row['tpot_ms_p99']:.2f}",
        f"{row['itl_ms_p99']:.1f}",
    )


def rates(row: Mapping[str, Any]) -> tuple[str, ...]:
    return f"{row['requests_per_s']:.2f}", f"{row['tokens_per_s']:.0f}"


def machine(found: Found) -> Rows:
    if "make" not in found:
        return
    yield f"the machine of the tables of {size_of(found).title}", ""
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
    days: dict[str, list[str]] = {}
    for part, day in found.get("kept", {}).items():
        days.setdefault(day, []).append(part)
    for day, parts in days.items():
        yield f"parts of {day}", ", ".join(parts)


def clients(found: Found) -> Rows:
    rows = [
        (f"{lead}{name}", row)
        for part, lead in (("http", ""), ("vllm", "vLLM: "))
        for name, row in cases(found, part).items()
        if "requests_per_s" in row
    ]
    if not rows:
        return
    yield (
        "clients x prompt", "requests", "first token ms, p50", "p99", "ms per token, mean", "p99",
        "between texts ms, p99", "requests/s", "tokens/s", "of floor",
    )  # fmt: skip
    for name, row in rows:
        yield name, *latencies(row), *rates(row), percent(share_of_floor(row, found))


def side_by_side(found: Found) -> Rows:
    """The rows that are compared with vLLM, each as measured here and as known of vLLM."""
    rows, other = cases(found, "http"), beside(found)
    names = [f"{clients} x {prompt}" for clients in (1, 64) for prompt in PROMPTS]
    if not any("requests_per_s" in rows.get(name, {}) for name in names):
        return
    yield (
        "clients x prompt", "server", "requests/s", "first token ms, p50", "ms per token, mean",
        "between texts ms, p99", "J per 1,000 tokens", "decode, of the floor",
    )  # fmt: skip
    for name in names:
        if "requests_per_s" in rows.get(name, {}):
            yield name, "here", *_compared(rows[name]), percent(decode_share(rows[name], found))
        if other is not None and name in other.rows:
            theirs = other.rows[name]
            share = decode_share(theirs, found) if "case" in theirs else None
            yield name, other.label, *_compared(theirs), percent(share)


def _compared(row: Mapping[str, Any]) -> tuple[str, ...]:
    forms = {
        "requests_per_s": "{:.2f}",
        "ttft_ms_p50": "{:.1f}",
        "tpot_ms_mean": "{:.2f}",
        "itl_ms_p99": "{:.1f}",
        "joules_per_1000_tokens": "{:.0f}",
    }
    return tuple(
        "-" if row.get(name) is None else form.format(row[name]) for name, form in forms.items()
    )


def energy(found: Found) -> Rows:
    """Energy of the card, where its driver counts it."""
    rows = [
        (f"{lead}{name}", row)
        for part, lead in (("http", ""), ("vllm", "vLLM: "))
        for name, row in cases(found, part).items()
        if "joules_per_request" in row
    ]
    if rows:
        yield "energy, clients x prompt", "J per request", "J per 1,000 tokens written"
    for name, row in rows:
        yield name, f"{row['joules_per_request']:.1f}", f"{row['joules_per_1000_tokens']:.0f}"


def goals(found: Found) -> Rows:
    held = qwen_vl_goals.held(found)
    if not held:
        return
    other = beside(found)
    theirs = "vLLM" if other is None else other.label
    yield "Qwen goal", "measured", "asked for", "reached", "wished for", theirs
    for goal in held:
        further = ("-" if name not in goal else f"{goal[name]:g}" for name in ("wish", "other"))
        yield *goal_cells(goal), *further


def compiling(found: Found) -> Rows:
    """A step of one row by transformers, by our engine and through our server."""
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
            shown = "-" if first is None else f"{first:.1f}"
            yield "here, in process", prompt, shown, f"{row['step_ms']:.2f}"
    for name, row in served.items():
        first_token, per_token = f"{row['ttft_ms_p50']:.1f}", f"{row['tpot_ms_mean']:.2f}"
        yield "here, through the server", name.removeprefix("1 x "), first_token, per_token


def _peer(found: Found) -> dict[str, Any]:
    rows = found.get("peer", {}).items()
    return {name: row for name, row in rows if isinstance(row, dict) and "tpot_ms" in row}


def _first_ms(found: Found, prompt: str) -> float | None:
    """Preparing included, as in the peer's figure."""
    ours = found["ours"]
    read, made = ours.get("first tokens", {}).get(prompt), ours.get("prepare_ms", {}).get(prompt)
    return None if read is None or made is None else read["ms"] + made


def syncing(found: Found) -> Rows:
    """Decode steps with and without launching ahead of the last step's tokens."""
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
    rates, floors = Rates.of(ceilings), floors_of(found)
    yield "rows that decode", "after", "ms per step", "p99", "floor", "of floor", "tokens/s"
    for row in rows:
        floor = floors.decode_ms(rates, row["rows"], row["tokens"])
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
        "prompt, random weights at full size", "transformers to float32", "here to float32",
        "here to transformers", "same choice as float32: transformers / here",
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


def readme(found: Found) -> Rows:
    """The README's rows: this server, transformers in the same run, and vLLM on the same kind of
    card."""
    other = beside(found)
    assert other is not None
    title = f"{size_of(found).title}, 64 tokens in, 128 out"
    yield title, "here", "transformers, static cache", other.label
    for prompt in PROMPTS:
        one, many = (found["http"][f"{clients} x {prompt}"] for clients in (1, 64))
        peer = found["peer"][f"transformers static, 1 x {prompt}"]
        mark, busy = (other.rows[f"{clients} x {prompt}"] for clients in (1, 64))
        yield (
            f"{prompt}: first token",
            f"{one['ttft_ms_p50']:.1f} ms",
            f"{peer['ttft_ms']:.0f} ms",
            f"{mark['ttft_ms_p50']:.0f} ms",
        )
        yield (
            f"{prompt}: per token, one client",
            f"{one['tpot_ms_mean']:.2f} ms",
            f"{peer['tpot_ms']:.2f} ms",
            f"{mark['tpot_ms_mean']:.2f} ms",
        )
        shown = (f"{row['requests_per_s']:.1f} requests/s" for row in (many, busy))
        here, theirs = shown
        yield f"{prompt}: 64 clients", here, "-", theirs


TABLES: Tables = {
    "machine": machine,
    "clients": clients,
    "side_by_side": side_by_side,
    "energy": energy,
    "goals": goals,
    "compiling": compiling,
    "syncing": syncing,
    "attention": attention,
    "steps": steps,
    "firsts": firsts,
    "logits": logits,
    "memory": memory,
}
"""Those of docs/performance.md, of 3B."""
ON_PAGES: Tables = {**TABLES, "readme": readme}
"""With the README's."""
OF_SEVEN: Tables = {
    "machine": machine,
    "side_by_side": side_by_side,
    "goals": goals,
    "steps": steps,
    "logits": logits,
}
"""Those of docs/performance.md, of 7B."""
