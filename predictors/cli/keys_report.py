"""Prints the report of the verb `keys`: as JSON, or as lines. Standard output has the key itself or
the list alone, so that a script can keep them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from predictors.cli.outcomes import DONE, print_report

LIMITS = ("max_jobs", "requests_per_minute", "engine_seconds_per_minute")


def print_keys(arguments: argparse.Namespace, report: Mapping[str, Any]) -> int:
    """Print the report of `keys add`, `keys list` or `keys remove`; returns the exit code."""
    print_report(arguments, report, key_lines)
    if not arguments.json:
        sys.stderr.writelines(f"{line}\n" for line in notes_on(report))
    return DONE


def key_lines(report: Mapping[str, Any]) -> Iterator[str]:
    if "key" in report:
        yield report["key"]
    for key in report.get("keys", ()):
        yield f"{key['name']}: {'; '.join(terms_of(key))}"


def terms_of(key: Mapping[str, Any]) -> Iterator[str]:
    yield f"weight {key['weight']:g}"
    yield f"models {', '.join(key['models'] or ['all'])}"
    for name in LIMITS:
        if key[name] is not None:
            yield f"{name.replace('_', ' ')} {key[name]:g}"
    if key["expires"] is not None:
        day, _, hour = key["expires"].removesuffix("Z").partition("T")
        yield f"{'expired' if key['is_expired'] else 'expires'} {day} {hour} UTC"


def notes_on(report: Mapping[str, Any]) -> Iterator[str]:
    """Notes to a person, for standard error."""
    if "key" in report:
        yield f"this is the only time that the key of {report['name']!r} is shown"
    if "removed" in report:
        of_all = report["removed"] + report["kept"]
        yield f"removed {report['removed']} of {of_all} keys of {report['name']!r}"
