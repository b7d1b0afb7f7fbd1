"""Every query of the dashboard, of its annotations and of the rules, asked of a real Prometheus that
has watched a real run: none empty, none in error.

Usage: dashboard_queries_test.py BIN_DIR
"""

import math
import sys

import dashboard_file
from observed_run import SLOWDOWN, ObservedRun

SCALE = 2  # 15 to 30 s
# Four scrapes and a bit, as Grafana has it; with sanitizers the end of a load lies further back.
RATE_S = 5 * SLOWDOWN

# What a lost expert must leave in the panels of errors: the run killed one.
SEEN_AT_LEAST_ONCE = [
    'max_over_time((1 - min(banyan_trunk_expert_replica_ready))[1h:1s]) == 1',
    "sum(banyan_trunk_expert_stream_losses_total) >= 1",
    "sum(banyan_trunk_failed_steps_total) >= 1",
    "sum(banyan_trunk_expert_outage_seconds_total) > 0",
    'sum(banyan_trunk_preemptions_total{reason="experts"}) >= 1',
    'sum(banyan_trunk_calls_total{outcome="unavailable"}) >= 1',
    'sum(banyan_trunk_calls_total{outcome="ok"}) >= 1',
    "max_over_time(banyan_trunk_queued_requests[1h]) >= 1",
]


def check_target(run, panel, target):
    """None when the query has data, else what is wrong."""
    expression = dashboard_file.expand(target["expr"], RATE_S)
    if target["instant"]:
        points = [[series["value"]] for series in run.prometheus.query(expression, at=run.end)]
    else:
        series = run.prometheus.range(expression, run.start, run.end)
        points = [one["values"] for one in series]
    where = f"{panel['title']} {target['refId']}"
    if not points:
        return f"{where}: no series: {expression}"
    if all(math.isnan(float(value)) for values in points for _, value in values):
        return f"{where}: only NaN: {expression}"
    return None


def main():
    dashboard = dashboard_file.read()
    with ObservedRun(sys.argv[1]) as run:
        run.load(SCALE)
        wrong, queries = [], 0
        for panel in dashboard_file.panels_with_queries(dashboard):
            for target in panel["targets"]:
                queries += 1
                wrong.append(check_target(run, panel, target))
        for annotation in dashboard["annotations"]["list"]:
            run.prometheus.range(dashboard_file.expand(annotation["expr"], RATE_S), run.start, run.end)
        for expression in SEEN_AT_LEAST_ONCE:
            if not run.prometheus.query(expression):
                wrong.append(f"the run did not show: {expression}")
        rules = [r for g in run.prometheus.get("rules")["groups"] for r in g["rules"]]
        for rule in rules:
            if rule["health"] != "ok":
                wrong.append(f"rule {rule['name']}: {rule['health']} {rule.get('lastError')}")
            if rule["type"] == "recording" and not run.prometheus.query(rule["name"]):
                wrong.append(f"rule {rule['name']}: no series")
        wrong = [what for what in wrong if what is not None]
        assert not wrong, "\n".join(wrong)
        print(
            f"dashboard_queries_test passed: {queries} queries and {len(rules)} rules over "
            f"{run.end - run.start:.0f} s"
        )


if __name__ == "__main__":
    main()
