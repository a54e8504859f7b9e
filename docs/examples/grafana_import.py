"""Imports the dashboard into a Grafana over its HTTP API, with the Python standard library alone.

GRAFANA_URL and GRAFANA_TOKEN (of a service account that may edit dashboards) name the Grafana.
"""

import json
import os
import urllib.request
from pathlib import Path

url = os.environ.get("GRAFANA_URL", "http://127.0.0.1:3000")
root = Path(__file__).resolve().parents[2]
dashboard = json.loads((root / "charts/predictors/dashboards/predictors.json").read_text())
dashboard["id"] = None  # Grafana gives one; the uid stays, so a second import replaces the first
body = {"dashboard": dashboard, "overwrite": True, "message": "Vision Predictors"}
request = urllib.request.Request(
    f"{url}/api/dashboards/db",
    data=json.dumps(body).encode(),
    headers={
        "Content-Type": "application/json",
        "Authorization": f"Bearer {os.environ.get('GRAFANA_TOKEN', '')}",
    },
)
with urllib.request.urlopen(request, timeout=30) as answer:
    print(json.load(answer)["url"])
