"""The report of `check` as lines of text, from the same values that `--json` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def check_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The folder, its parts, and the memory of each way to serve it."""
    kind = report["architecture"] or "folder whose config names no class"
    yield f"{report['folder']}: {kind}, {'served' if report['served'] else 'not served'}"
    if report["reason"]:
        yield f"reason: {report['reason']}"
    if report["parts"]:
        yield ""
        yield from _columns([PART_TITLES, *map(_part_cells, report["parts"])])
    for found in report["verified"]:
        yield (
            f"verified: {found['files']} files ({_size(found['bytes'])}) of {found['folder']} are "
            f"as {found['source']} says"
        )
    if report["options"]:
        yield ""
        yield from _memory_lines(report)
    yield from map(_lora_line, report["loras"])
    for note in report["notes"]:
        yield f"note: {note}"


def _lora_line(lora: Mapping[str, Any]) -> str:
    if not lora["served"]:
        return f"adapter {lora['name']}: not served; reason: {lora['reason']}"
    linears = " and ".join(f"{count} of {part}" for part, count in lora["linears"].items())
    return (
        f"adapter {lora['name']}: {lora['file']} ({lora['format']}), rank {lora['rank']}, changes "
        f"{linears}"
    )


PART_TITLES = ("part", "parameters", "stored", "as")


def _part_cells(part: Mapping[str, Any]) -> tuple[str, ...]:
    kinds = " ".join(part["stored_values"])
    method = f" ({part['quantisation']})" if part["quantisation"] else ""
    parameters = _count(part["parameters"]) if part["parameters"] else "-"
    return part["name"], parameters, _size(part["stored_bytes"]), kinds + method


def _memory_lines(report: Mapping[str, Any]) -> Iterator[str]:
    card = report["card"]
    memory = card["memory_bytes"]
    if memory is None:
        yield "GPU memory (no card found; --memory 24GiB judges one):"
    else:
        whole = f"{_size(memory)}{card['name'] and ' on ' + card['name']}"
        part = card["memory_fraction"]
        share = f"{_size(int(part * memory))}, which is {part:g} of " if part else ""
        yield f"GPU memory, of {share}{whole}:"
    rows = []
    for option in report["options"]:
        mark = "*" if option["chosen"] else " "
        rows.append((mark, option["name"], _size(option["needed_bytes"]), _verdict(option)))
    yield from _columns(rows)
    yield "* by the settings; weights counted, work and graphs as measured: docs/your-own-models.md"
    chosen = next((option for option in report["options"] if option["chosen"]), None)
    if chosen:
        parts = (f"{name} {_size(num_bytes)}" for name, num_bytes in chosen["bytes"].items())
        yield f"of which: {', '.join(parts)}"
        yield from _token_lines(chosen["detail"])


def _verdict(option: Mapping[str, Any]) -> str:
    if option["refused"]:
        return f"not possible: {option['refused']}"
    if option["fits"] is None:
        return ""
    if option["fits"]:
        return "fits"
    short = f", {_size(option['short_bytes'])} short" if option["short_bytes"] else ""
    return f"does not fit{short}" + (f"; {option['advice']}" if option["advice"] else "")


def _token_lines(detail: Mapping[str, int]) -> Iterator[str]:
    if "kv_tokens" in detail:
        yield (
            f"KV cache: {detail['kv_tokens']:,} tokens in {detail['kv_pages']:,} pages, "
            f"{detail['whole_contexts']} whole contexts of {detail['max_context']:,} tokens"
        )
    elif "kv_bytes_per_token" in detail:
        yield f"KV cache: {detail['kv_bytes_per_token']:,} bytes per token"


def _columns(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _count(number: int) -> str:
    for unit, size in (("billion", 1e9), ("million", 1e6), ("thousand", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**27 else f"{num_bytes / 2**20:.1f} MiB"
