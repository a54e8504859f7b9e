"""How the e2e cluster is taken down and how its suite runs, where that needs no cluster: cgroups,
pids, networks, and stages that fail.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import pytest

from tests.e2e.cluster import configs, control, host, lifecycle, suite
from tests.e2e.cluster.components import Component
from tests.e2e.cluster.places import ROOT, ClusterError, Site
from tests.e2e.cluster.processes import Processes


class Answering(BaseHTTPRequestHandler):
    """Ready under one path only."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/ready" else 500)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def processes(tmp_path: Path) -> Processes:
    """Components' processes with folders of their own."""
    made = Site(*(tmp_path / name for name in ("run", "state", "images", "bin", "out")))
    made.run.mkdir()
    return Processes(made)


def python(name: str, code: str, ready_url: str | None = None) -> Component:
    return Component(name, (sys.executable, "-c", code), {"GREETING": "hello"}, ready_url)


def test_a_component_that_ends_is_noticed_and_its_log_goes_on(processes: Processes) -> None:
    talking = python("talker", "import os; print(os.environ['GREETING'], flush=True); exit(4)")
    for _ in range(2):
        processes.start(talking).wait()
        assert processes.ended() == [(talking, 4)]
    assert processes.ended() == []
    assert processes.tail(talking).count("hello") == 2


def test_a_component_is_ready_when_its_address_answers(processes: Processes, address: str) -> None:
    waiting = "import signal; signal.pause()"
    ready = python("ready", waiting, f"{address}/ready")
    processes.start(ready)
    processes.wait_ready(ready)
    assert processes.is_ready(ready)
    assert not processes.is_ready(python("sick", waiting, f"{address}/sick"))
    processes.stop("ready")
    assert processes.ended() == []
    with pytest.raises(ClusterError, match="ready is not running"):
        processes.stop("ready")


def test_a_component_that_dies_at_once_is_named_with_its_last_words(processes: Processes) -> None:
    dying = python("dying", "raise SystemExit('no such flag')", "http://127.0.0.1:9/ready")
    processes.start(dying)
    with pytest.raises(ClusterError, match=r"dying ended with 1:\nno such flag"):
        processes.wait_ready(dying)


def test_cgroups_are_removed_and_others_stay(tmp_path: Path) -> None:
    ours = tmp_path / "cpu" / configs.CGROUP
    (ours / "kubepods" / "pod1").mkdir(parents=True)
    (tmp_path / "cpu" / "somebody").mkdir()
    assert host.remove_cgroups(tmp_path) == []
    assert [p.name for p in (tmp_path / "cpu").iterdir()] == ["somebody"]


def test_a_cgroup_in_use_is_said(tmp_path: Path) -> None:
    busy = tmp_path / "cpu" / configs.CGROUP
    busy.mkdir(parents=True)
    (busy / "a process").touch()
    assert host.remove_cgroups(tmp_path, timeout_s=0.0) == [busy]


def test_a_reused_pid_is_not_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lifecycle, "RUN", tmp_path)
    assert lifecycle.supervisor_pid() is None
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    try:
        noted = tmp_path / "pid"
        noted.write_text(f"{process.pid} {lifecycle.started_at(process.pid)}")
        assert lifecycle.supervisor_pid() == process.pid
        noted.write_text(f"{process.pid} 1")
        assert lifecycle.supervisor_pid() is None
    finally:
        process.kill()
        process.communicate()


def test_a_cluster_of_another_owner_is_neither_used_nor_taken_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken_down: list[bool] = []
    monkeypatch.setattr(lifecycle, "supervisor_pid", lambda: 1)
    monkeypatch.setattr(lifecycle, "down", lambda: taken_down.append(True) or 0.0)
    with pytest.raises(ClusterError, match="a cluster is up already"):
        lifecycle.with_cluster(["true"])
    assert taken_down == []


def test_a_supervisor_that_is_gone_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="supervisor does not answer"):
        control.ask("stop", "kube-apiserver", tmp_path / "control.sock")


def test_the_suite_says_every_stage_and_stops_at_the_first_that_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def stages(_tests: object, _out: Path) -> tuple[tuple[suite.Stage, ...], ...]:
        commands = {"first": "print('seen')", "second": "raise SystemExit(3)", "third": "print(3)"}
        return tuple((suite.Stage(n, (sys.executable, "-c", c)),) for n, c in commands.items())

    monkeypatch.setattr(suite, "stages", stages)
    monkeypatch.setattr(suite, "CLUSTER", (sys.executable, "-c", "print('taken down')"))
    assert suite.run_suite([], tmp_path) == 3
    assert (tmp_path / "first.log").read_text() == "seen\n"
    assert (tmp_path / "cluster-down.log").read_text() == "taken down\n"
    assert not (tmp_path / "third.log").exists()
    said = capfd.readouterr().out
    assert re.search(r"first \d+ s, second \d+ s, cluster-down \d+ s", said), said


def test_what_still_runs_in_the_clusters_network_is_found(tmp_path: Path) -> None:
    assert host.processes_in(host.network_of(os.getpid())) >= {os.getpid()}
    assert host.processes_in("net:[0]") == set()


def test_the_suite_imports_images_before_it_tests(tmp_path: Path) -> None:
    names = [{stage.name for stage in group} for group in suite.stages(["tests/e2e"], tmp_path)]
    side_by_side = {"image-build", "cluster-up"}
    assert names == [{"cluster-build"}, side_by_side, {"image-import"}, {"tests"}]


def test_stages_side_by_side_all_end_and_the_bad_code_counts(tmp_path: Path) -> None:
    meeting = tmp_path / "meeting"
    os.mkfifo(meeting)  # neither end opens before the other does
    opens = "import sys; open(sys.argv[1], sys.argv[2]).close(); sys.exit(int(sys.argv[3]))"

    def stage(name: str, mode: str, code: int) -> suite.Stage:
        return suite.Stage(name, (sys.executable, "-c", opens, str(meeting), mode, str(code)))

    run = suite.Run(tmp_path)
    assert suite.run_group((stage("reads", "r", 0), stage("writes", "w", 4)), run) == 4
    assert {each.split()[0] for each in run.taken} == {"reads", "writes"}
    assert run.at_work == []


TWO_AT_WORK = """
import sys
from pathlib import Path
from tests.e2e.cluster import lifecycle, suite
lifecycle.exit_on_signals()
waits = (sys.executable, "-c", "import signal; print('at work', flush=True); signal.pause()")
suite.run_group([suite.Stage(name, waits) for name in "ab"], suite.Run(Path(sys.argv[1])))
"""


def test_a_signal_ends_every_stage_that_is_at_work(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TWO_AT_WORK, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        at_work = (line for line in process.stdout if "at work" in line)
        assert len(list(islice(at_work, 2))) == 2
        process.terminate()
        assert process.wait(120) == 128 + signal.SIGTERM, "it would wait for its stages for ever"
