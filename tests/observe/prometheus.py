"""A real Prometheus for a block: it scrapes, evaluates rules and answers over its HTTP API. Knows
no metric of ours.

Debian's binary, on a free port of 127.0.0.1, with its database in a folder of the test.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from predictors.cli.child import free_ports
from tests.observe.daemon import Daemon

SCRAPE_S = 1

Labels = Mapping[str, str]


class Prometheus(Daemon):
    """A context manager. `targets` are addresses to scrape with the labels that a cluster would
    add; `rules` are rule files; `alertmanagers` are addresses that are told what fires. Methods
    block; the test's thread."""

    def __init__(
        self,
        folder: Path,
        targets: Mapping[str, Labels],
        rules: Sequence[Path] = (),
        alertmanagers: Sequence[str] = (),
    ) -> None:
        config = {
            "global": {
                "scrape_interval": f"{SCRAPE_S}s",
                "scrape_timeout": f"{SCRAPE_S}s",
                "evaluation_interval": "1s",
            },
            "rule_files": [str(path) for path in rules],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": list(alertmanagers)}]}]},
            "scrape_configs": [
                {
                    "job_name": "predictors",
                    "static_configs": [
                        {"targets": [address], "labels": dict(labels)}
                        for address, labels in targets.items()
                    ],
                }
            ],
        }
        address, storage = f"127.0.0.1:{free_ports(1)[0]}", f"--storage.tsdb.path={folder / 'tsdb'}"
        super().__init__("prometheus", folder, address, config, storage)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Every series of an instant query: `metric` and `value` (time, text)."""
        found: list[dict[str, Any]] = self._get("/api/v1/query", query=expression)["result"]
        return found

    def query_range(self, expression: str, start_s: float, end_s: float) -> list[dict[str, Any]]:
        """Every series of a range query, a sample a second: `metric` and `values`. Unix seconds."""
        asked = {"query": expression, "start": start_s, "end": end_s, "step": SCRAPE_S}
        found: list[dict[str, Any]] = self._get("/api/v1/query_range", **asked)["result"]
        return found

    def numbers(self, expression: str, start_s: float, end_s: float) -> list[float]:
        """Every finite sample of a range query, of all series."""
        samples = (
            float(text)
            for series in self.query_range(expression, start_s, end_s)
            for _, text in series["values"]
        )
        return [sample for sample in samples if math.isfinite(sample)]

    def value(self, expression: str) -> float:
        """The sum of an instant query's series; 0 when there are none."""
        return sum(float(series["value"][1]) for series in self.query(expression))

    def label_values(self, label: str, series: str) -> list[str]:
        """What Grafana's `label_values(series, label)` asks."""
        found: list[str] = self._get(f"/api/v1/label/{label}/values", **{"match[]": series})
        return found

    def rules(self) -> list[dict[str, Any]]:
        """Every loaded rule with its `health`, `lastError` and, for alerts, `state`."""
        groups = self._get("/api/v1/rules")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def firing(self) -> dict[str, list[Labels]]:
        """Alerts that fire, by name, with the labels of each instance."""
        return self.active("firing")

    def active(self, *states: str) -> dict[str, list[Labels]]:
        """The same for alerts in these states, of `pending` and `firing`; for none, in both."""
        found: dict[str, list[Labels]] = {}
        for alert in self._get("/api/v1/alerts")["alerts"]:
            if alert["state"] in (states or ("pending", "firing")):
                found.setdefault(alert["labels"]["alertname"], []).append(alert["labels"])
        return found

    def wait_scraped(self, times: int = 2) -> float:
        """Return once every target was scraped so many times more; the Unix time then."""
        began = time.time()

        def fresh() -> bool:
            since = f"min(count_over_time(up[{math.ceil(time.time() - began)}s]))"
            return time.time() - began >= 1 and self.value(since) > times

        self.wait_until(fresh, "the targets are not scraped")
        return time.time()

    def _get(self, path: str, **asked: Any) -> Any:
        reply = self._http.get(path, params=asked)
        assert reply.status_code == 200, f"{asked}: {reply.text}"
        return reply.json()["data"]
