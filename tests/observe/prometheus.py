"""A real Prometheus for a block: it scrapes, evaluates rules and answers over its HTTP API.

Debian's binary, on a free port of 127.0.0.1, with its database in a folder of the test.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.observe.daemon import Daemon

SCRAPE_S = 1

Labels = Mapping[str, str]


class Prometheus(Daemon):
    """A context manager. `targets` are addresses to scrape with the labels that a cluster would
    add; `rules` are rule files; `alertmanagers` are addresses that get firing alerts. Methods
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
        super().__init__("prometheus", folder, config, f"--storage.tsdb.path={folder / 'tsdb'}")

    def query(self, expression: str, at_s: float | None = None) -> list[dict[str, Any]]:
        """Every series of an instant query, now or at that Unix time: `metric` and `value` (time,
        text), or `values` for a range."""
        asked = {"query": expression} | ({} if at_s is None else {"time": at_s})
        found: list[dict[str, Any]] = self._get("/api/v1/query", **asked)["result"]
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

    def value(self, expression: str, at_s: float | None = None) -> float:
        """The sum of an instant query's series; 0 when there are none."""
        return sum(float(series["value"][1]) for series in self.query(expression, at_s))

    def label_values(self, label: str, series: str) -> list[str]:
        """The values that Grafana's `label_values(series, label)` asks for."""
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
        """Return once every target was scraped so many times more, and the last time with success;
        the Unix time of that. What is asked of that time is not changed by any later scrape."""
        began = time.time()
        last: list[float] = []

        def fresh() -> bool:
            last.clear()
            for series in self.query(f"up[{math.ceil(time.time() - began) + 1}s]"):
                scrapes = [at for at, up in series["values"] if at > began and up == "1"]
                if len(scrapes) <= times or scrapes[-1] != series["values"][-1][0]:
                    return False
                last.append(scrapes[-1])
            return bool(last)

        self.wait_until(fresh, "the targets are not scraped")
        return min(last)

    def _get(self, path: str, **asked: Any) -> Any:
        reply = self._http.get(path, params=asked)
        assert reply.status_code == 200, f"{asked}: {reply.text}"
        return reply.json()["data"]
