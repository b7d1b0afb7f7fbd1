"""The dashboard as Grafana loads it, and its queries as Grafana would send them."""

import json
import os

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
GRAFANA = os.path.join(ROOT, "deploy", "grafana")
PATH = os.path.join(GRAFANA, "dashboards", "banyan.json")


def read():
    with open(PATH) as file:
        return json.load(file)


def expand(expression, rate_interval_s):
    """With Grafana's variables filled in: all trunks, and the window of rates."""
    for name, value in {
        "$__rate_interval": f"{rate_interval_s}s",
        "$trunk": ".*",
    }.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, f"a variable that is not known here: {expression}"
    return expression


def panels_with_queries(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]
