"""The Qwen tables of docs/performance.md and of the README, made from the results of
`benchmarks.qwen_vl`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common.goals import goal_cells
from benchmarks.common.journal import Rows, Tables
from benchmarks.qwen_vl import floors
from benchmarks.qwen_vl import goals as qwen_vl_goals
from benchmarks.qwen_vl.cases import Case
from benchmarks.qwen_vl.floors import Rates

Found = Mapping[str, Any]


def cases(found: Mapping[str, Any], part: str) -> dict[str, dict[str, Any]]:
    return {name: row for name, row in found.get(part, {}).items() if _is_case(row)}


def _is_case(row: object) -> bool:
    return isinstance(row, dict) and "case" in row


def share_of_floor(row: Mapping[str, Any], ceilings: Mapping[str, Any]) -> float | None:
    """Of the requests per second that the card's best rates allow. None where prompts repeat: their
    floor is not that of a new prompt."""
    case = Case(**row["case"])
    if "requests_per_s" not in row or "copy_bytes_per_s" not in ceilings:
        return None
    if case.is_same or case.turns > 1:
        return None
    rates = floors.Rates.of(ceilings)
    vision = case.pictures * floors.vision_operations(*case.size) if case.size else 0.0
    prompt, answer = row["prompt_tokens_mean"], row["tokens_mean"]
    floor = floors.requests_per_s(rates, case.clients, prompt, answer, vision)
    share: float = row["requests_per_s"] / floor
    return share


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
        share = share_of_floor(row, found.get("ceilings", {}))
        cell = "-" if share is None else f"{100 * share:.0f} %"
        yield name, *latencies(row), *rates(row), cell


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
    yield "Qwen goal", "measured", "asked for", "reached", "wished for", "vLLM 0.24 on an H100"
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
    rates = Rates.of(ceilings)
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
    """The README's rows: this server, transformers in the same run, and vLLM elsewhere."""
    yield (
        "Qwen2.5-VL-3B, 64 tokens in, 128 out",
        "here",
        "transformers, static cache",
        "vLLM on an H100",
    )
    for prompt in ("1024x1024", "448x448", "text"):
        one, many = (found["http"][f"{clients} x {prompt}"] for clients in (1, 64))
        peer = found["peer"][f"transformers static, 1 x {prompt}"]
        mark, busy = (qwen_vl_goals.VLLM[f"{clients} x {prompt}"] for clients in (1, 64))
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
        rate = f"{many['requests_per_s']:.1f} requests/s"
        yield f"{prompt}: 64 clients", rate, "-", f"{busy['requests_per_s']} requests/s"


TABLES: Tables = {
    "machine": machine,
    "clients": clients,
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
"""Those of docs/performance.md."""
ON_PAGES: Tables = {**TABLES, "readme": readme}
"""With the README's."""
