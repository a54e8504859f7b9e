"""PID 1 of the cluster's namespaces: brings the components up, reaps, starts controllers again that
ended, and obeys the control socket. When it ends, everything in the namespaces ends.

Started by `lifecycle.up` through unshare, never by hand. One thread; a request is one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import signal
import socket
import sys

from tests.e2e.cluster.boot import boot, say
from tests.e2e.cluster.components import table
from tests.e2e.cluster.places import ClusterError, saved_site
from tests.e2e.cluster.processes import Processes

RESTARTS = 20
REQUEST_S = 5.0


class Supervisor:
    """The loop of a cluster that is up."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.parts = table(processes.site)
        self.restarts = 0
        self.selector = selectors.DefaultSelector()
        self.control = socket.socket(socket.AF_UNIX)
        self.woken, wakes = socket.socketpair()
        self.woken.setblocking(False)
        wakes.setblocking(False)
        signal.set_wakeup_fd(wakes.fileno())
        self.wakes = wakes  # kept: a closed one would wake nobody
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> None:
        """Serve until killed."""
        self.control.bind(str(self.processes.site.control))
        self.control.listen()
        self.selector.register(self.control, selectors.EVENT_READ, self.answer)
        self.selector.register(self.woken, selectors.EVENT_READ, self.look_after_children)
        (self.processes.site.run / "ready").touch()
        while True:
            for key, _ in self.selector.select():
                key.data()

    def look_after_children(self) -> None:
        """After a SIGCHLD: say who ended, start controllers again, reap the rest."""
        self.woken.recv(4096)
        for component, code in self.processes.ended():
            say(f"{component.name} ended with {code}")
            if component.vital:
                (self.processes.site.run / "failed").write_text(component.name)
            elif self.restarts < RESTARTS:
                self.restarts += 1
                self.processes.start(component)
                say(f"{component.name} is started again")
        self.processes.reap_orphans()

    def answer(self) -> None:
        """One request, one answer; a client that says nothing loses its turn."""
        connection, _ = self.control.accept()
        with connection:
            connection.settimeout(REQUEST_S)
            try:
                request = json.loads(connection.makefile().readline())
                reply = {"ok": self.obey(str(request["verb"]), str(request.get("name", "")))}
            except ClusterError as error:
                reply = {"error": str(error)}
            except (OSError, ValueError, KeyError) as error:
                reply = {"error": f"not a request: {type(error).__name__}"}
            try:
                connection.sendall(json.dumps(reply).encode() + b"\n")
            except OSError:
                say("a client left before its answer")

    def obey(self, verb: str, name: str) -> object:
        """Do what a request says; raises `ClusterError`."""
        if verb == "status":
            return {part: part in self.processes.running for part in self.parts}
        if name not in self.parts:
            raise ClusterError(f"no component {name!r}; there are {', '.join(self.parts)}")
        if verb == "stop":
            self.processes.stop(name)
            say(f"{name} was stopped")
        elif verb == "start":
            if name in self.processes.running:
                raise ClusterError(f"{name} is running")
            self.processes.start(self.parts[name])
            self.processes.wait_ready(self.parts[name])
            say(f"{name} was started")
        else:
            raise ClusterError(f"no verb {verb!r}")
        return name


def main() -> None:
    """Boot, then supervise; an error ends the process, and with it the namespaces."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--no-keda", action="store_true")
    arguments = parser.parse_args()
    os.umask(0o022)
    processes = Processes(saved_site())
    try:
        boot(processes.site, processes, keda=not arguments.no_keda)
    except ClusterError as error:
        sys.exit(f"the cluster did not come up: {error}")
    say("the cluster is up")
    Supervisor(processes).run()


if __name__ == "__main__":
    main()
