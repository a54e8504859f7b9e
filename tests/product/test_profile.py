"""`python -m predictors profile`, whole processes over the embedded checkpoints."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.fakes import PATIENCE_S
from tests.http.echo import png
from tests.product.conftest import CHECKPOINTS

FLUX = f"--model=flux={CHECKPOINTS / 'shapes-flux'}"
QWEN = f"--model=qwen-vl={CHECKPOINTS / 'shapes-qwen-vl'}"
SMALL = {
    "PREDICTORS_FLUX_SLOTS": "1",
    "PREDICTORS_FLUX_SIZES": "64x64",
    "PREDICTORS_FLUX_MAX_SEQUENCE_LENGTH": "16",
    "PREDICTORS_FLUX_TIERS": "lossless",
    "OMP_NUM_THREADS": "1",
}
RECORD = re.compile(r"[0-9-]{10} [0-9:,]{12} (INFO|WARNING) predictors[a-z_.]* ")
VERB = [sys.executable, "-m", "predictors", "profile", "--log-format=text"]


def profile(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The verb, in a process of its own."""
    return subprocess.run(
        [*VERB, *arguments],
        env=os.environ | SMALL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def lines_of_others(log: str) -> list[str]:
    """The lines on stderr that are no records of ours."""
    return [line for line in log.splitlines() if not RECORD.match(line)]


def stages_in(file: Path) -> Counter[str]:
    """How often each named range is in a trace."""
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    return Counter(e["name"] for e in events if e.get("cat") == "user_annotation")


def test_a_picture_is_profiled_with_all_its_stages(tmp_path: Path) -> None:
    out = tmp_path / "new" / "flux.trace.json.gz"
    size = ("--parameter=width=64", "--parameter=height=64", "--parameter=num_inference_steps=3")
    done = profile(FLUX, *size, "--steps=5", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert lines_of_others(done.stderr) == []  # without a GPU, Kineto would complain
    found = stages_in(out)
    assert found["engine_step"] == 5
    assert found["denoise_step"] >= 4
    assert found["text_encode"] == 1  # the second picture has it from the cache
    assert found["vae_decode"] >= 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("stages, 5 steps ")
    shown = {line.split()[0]: int(line.split()[1]) for line in lines[1:5]}
    assert shown == dict(found)
    assert "aten::addmm" in done.stdout
    assert lines[-1].startswith("5 steps in ")
    assert lines[-1].endswith(f"s; trace: {out}")


def test_a_chat_about_a_picture_is_profiled_by_two_rows_at_once(tmp_path: Path) -> None:
    picture, out = tmp_path / "x.png", tmp_path / "qwen.trace.json.gz"
    picture.write_bytes(png(size=(56, 56)))
    rows = ("--prompt=What is this?", "--prompt=Which colour has it?", f"--image={picture}")
    done = profile(QWEN, *rows, "--parameter=max_tokens=20", "--steps=12", f"--out={out}", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["steps"], report["trace"]) == (12, str(out))
    assert {row["name"]: row["calls"] for row in report["stages"]} == dict(stages_in(out))
    found = stages_in(out)
    assert found["engine_step"] == 12
    assert found["vision"] >= 1
    assert found["prefill"] >= 1
    assert found["decode"] >= 4


WRONG = {
    "--steps=0": "steps must be a whole number from 1 to 200",
    "--parameter=width": "--parameter takes NAME=VALUE, not 'width'",
    "--parameter=wdith=64": "wdith",
    "--image=nothing.png": "'nothing.png' can't be read: No such file or directory",
    QWEN: "profile takes one --model",
    "--out=/proc/x/y": "'/proc/x/y' can't be written: No such file or directory",
}
EACH = """
import sys
from predictors.__main__ import main
first, *each = sys.argv[1:]
for wrong in each:
    code = main(["profile", "--log-format=text", first, wrong])
    print(f"exit code {code}", file=sys.stderr)
"""
"""The verb with each of several arguments, in one process: importing torch takes seconds."""


def test_a_wrong_argument_is_refused_before_anything_is_loaded() -> None:
    done = subprocess.run(
        [sys.executable, "-c", EACH, FLUX, *WRONG],
        env=os.environ | SMALL, capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = done.stderr.split("exit code 2\n")
    assert len(told) == len(WRONG) + 1, done.stderr
    for sentence, lines in zip(WRONG.values(), told, strict=False):
        last = lines.splitlines()[-1]
        assert last.startswith("error: ")
        assert sentence in last
    assert "is loading" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("moment", ["is loading", "is ready"])
def test_ctrl_c_ends_it_without_a_trace(moment: str, tmp_path: Path) -> None:
    out = tmp_path / "x.gz"
    # steps of a size that is slow here: far from over when a busy test has read the line
    wishes = [f"--parameter={w}" for w in ("num_inference_steps=50", "width=512", "height=512")]
    command = [*VERB, FLUX, *wishes, "--steps=200", f"--out={out}"]
    with subprocess.Popen(
        command, env=os.environ | SMALL, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        seen = []
        for line in process.stderr:
            seen.append(line)
            if moment in line:
                process.send_signal(signal.SIGINT)
                break
        rest, told = process.stderr.read(), process.stdout
        assert process.wait(PATIENCE_S) == 130, "".join(seen) + rest
        assert told is not None
        assert told.read() == ""
    assert rest.splitlines()[-1] == "interrupted"
    assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []
