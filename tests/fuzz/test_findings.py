"""Reports of fuzzers: the printed words about a title of schemathesis."""

from __future__ import annotations

from tests.fuzz.findings import MAX_PRINTED, ROOT, Finding, finding_of, printed_about

CONSOLE = """Schemathesis v4.32.5

==================== ERRORS ====================
___________________ GET /v2 ___________________
Runtime Error

too many of them
Traceback of the library

Need more help?

=================== FAILURES ===================
_____________ POST /v2/models/a/infer _____________
1. Test Case ID: x1

- ST201 Schema-violating request accepted

    Reproduce with: curl -X POST -d one

__________________ POST /tokenize __________________
1. Test Case ID: x2

- ST102 Undocumented status

    Reproduce with: curl -X POST -d two

=================== SUMMARY ===================
Failures:
  Runtime Error: 1
"""


def test_an_error_of_the_tool_is_told_with_what_it_printed() -> None:
    told = printed_about(CONSOLE, "Runtime Error")
    assert "GET /v2" in told
    assert "too many of them\nTraceback of the library" in told
    assert "curl" not in told


def test_a_failure_is_told_with_its_own_operation_alone() -> None:
    told = printed_about(CONSOLE, "Schema-violating request accepted")
    assert "POST /v2/models/a/infer" in told
    assert "curl -X POST -d one" in told
    assert "two" not in told


def test_what_was_not_printed_is_empty_and_what_is_long_is_cut() -> None:
    assert printed_about(CONSOLE, "Network Error") == ""
    long = CONSOLE.replace("too many of them", "x" * 2 * MAX_PRINTED)
    assert len(printed_about(long, "Runtime Error")) <= MAX_PRINTED


def test_a_findings_file_has_no_path_of_the_machine() -> None:
    found = Finding("json", "crash", 1, 2, f"File {ROOT}tests/a.py, line 3, in {ROOT}b", b"\xff")
    assert found.as_json()["message"] == "File tests/a.py, line 3, in b"
    assert finding_of(found.as_json()).raw == b"\xff"
