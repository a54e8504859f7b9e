"""The components' processes under the supervisor: start, stop, notice that one ended, ask whether
one is ready. Runs in PID 1 of the cluster's namespaces.
"""

from __future__ import annotations

import os
import ssl
import subprocess
import time
import urllib.error
import urllib.request

from tests.e2e.cluster.components import Component
from tests.e2e.cluster.identities import token_of
from tests.e2e.cluster.places import ClusterError, Site

READY_S = 90.0
STOP_S = 10.0
PROBE_S = 2.0
POLL_S = 0.05
TAIL_BYTES = 3000


class Processes:
    """Every component that was started, by name; only the supervisor's one thread calls it."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.components: dict[str, Component] = {}

    def start(self, component: Component) -> subprocess.Popen[bytes]:
        """Start a component; its log goes on where it was."""
        self.site.log_folder.mkdir(parents=True, exist_ok=True)
        with (self.site.log_folder / f"{component.name}.log").open("ab") as log:
            process = subprocess.Popen(
                component.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.site.run,
                env={**os.environ, **component.environment},
            )
        self.running[component.name] = process
        self.components[component.name] = component
        return process

    def stop(self, name: str) -> None:
        """End a component and wait for it, by force when it takes its time."""
        process = self.running.pop(name, None)
        if process is None:
            raise ClusterError(f"{name} is not running")
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def ended(self) -> list[tuple[Component, int]]:
        """Components that ended unasked since the last look, with their exit codes."""
        gone = [(name, p.returncode) for name, p in self.running.items() if p.poll() is not None]
        for name, _ in gone:
            del self.running[name]
        return [(self.components[name], code) for name, code in gone]

    def reap_orphans(self) -> None:
        """Take the exit codes of processes that were left to PID 1; components keep theirs."""
        ours = {process.pid for process in self.running.values()}
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            # a component that ended is taken by `ended` when the next signal comes
            if found is None or found.si_pid in ours:
                return
            os.waitpid(found.si_pid, 0)

    def is_ready(self, component: Component) -> bool:
        """True if a component's address answers with 200."""
        if component.ready_url is None:
            return True
        trust = None
        headers = {}
        if component.ready_url.startswith("https"):
            trust = ssl.create_default_context(cafile=self.site.certificates / "ca.crt")
            headers = {"Authorization": f"Bearer {token_of(self.site)}"}
        request = urllib.request.Request(component.ready_url, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=PROBE_S, context=trust) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def wait_ready(self, component: Component) -> None:
        """Until a component answers; raises `ClusterError` with its log's end."""
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            process = self.running[component.name]
            if process.poll() is not None:
                code = process.returncode
                raise ClusterError(f"{component.name} ended with {code}:\n{self.tail(component)}")
            if self.is_ready(component):
                return
            time.sleep(POLL_S)
        raise ClusterError(f"{component.name} was not ready in time:\n{self.tail(component)}")

    def tail(self, component: Component) -> str:
        """The end of a component's log."""
        content = (self.site.log_folder / f"{component.name}.log").read_bytes()
        return content[-TAIL_BYTES:].decode(errors="replace")
