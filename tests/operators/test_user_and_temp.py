"""Processes without a name of their user, and without a folder for temporary files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME", "TORCHINDUCTOR_CACHE_DIR", "TMPDIR")
NOBODY = """
import pwd

def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")

pwd.getpwuid = unknown
"""
"""A `sitecustomize` of a machine whose users have no names."""
READ_ONLY = """
import tempfile

tempfile._candidate_tempdir_list = lambda: ["/proc"]
"""
"""A `sitecustomize` of a machine without a folder that can be written."""


def drawn(site: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`draw` with a model of its own, on such a machine."""
    (folder / "sitecustomize.py").write_text(site)
    environ = {name: value for name, value in os.environ.items() if name not in NAMES}
    environ |= {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    model = f"--model={ROOT / 'checkpoints/shapes-flux'}"
    words = ["draw", "a", "-o", str(folder / "x.png"), "--size=64x64", "--steps=1", model]
    command = [sys.executable, "-m", "predictors", *words]
    return subprocess.run(command, env=environ, capture_output=True, text=True)


def test_a_user_without_a_name_draws(tmp_path: Path) -> None:
    done = drawn(NOBODY, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_folder_for_temporary_files_one_sentence_says_so(tmp_path: Path) -> None:
    done = drawn(READ_ONLY, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: TMPDIR, /tmp and /var/tmp can't be written, and torch needs a folder for "
        "temporary files; set TMPDIR to one\n"
    )
