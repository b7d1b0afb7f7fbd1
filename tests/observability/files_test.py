"""deploy/grafana and deploy/prometheus without anything running: the dashboard is what its source
makes, keeps to the schema and has no overlaps; its data source is the provisioned one; alerts are
complete; every metric that is named exists.

Usage: files_test.py. Needs Debian's packages python3-jsonschema and python3-yaml.
"""

import copy
import glob
import json
import os
import re
import subprocess
import sys
import unittest

import jsonschema
import yaml

import dashboard_file
from dashboard_file import GRAFANA, ROOT

ALERTS = {
    "BanyanTargetDown",
    "BanyanNotServing",
    "BanyanSlowStep",
    "BanyanExpertLost",
    "BanyanQueueGrowing",
    "BanyanRequestsFailing",
    "BanyanLoadTooLong",
    "BanyanPackRejected",
}
QUESTIONS = ["Is it well?", "Why is it slow?", "Capacity", "Load", "Errors"]


def read_yaml(*path):
    with open(os.path.join(ROOT, *path)) as file:
        return yaml.safe_load(file)


def rules():
    files = sorted(glob.glob(os.path.join(ROOT, "deploy", "prometheus", "rules", "*.yml")))
    groups = [group for file in files for group in read_yaml(file)["groups"]]
    return [rule for group in groups for rule in group["rules"]]


def validator():
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "dashboard_schema.json")) as file:
        schema = json.load(file)
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def overlaps(panels):
    """Titles of the panels that share a cell of the grid."""
    cells = {}
    pairs = []
    for panel in panels:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                other = cells.setdefault((x, y), panel["title"])
                if other != panel["title"]:
                    pairs.append((other, panel["title"]))
    return pairs


class DashboardTest(unittest.TestCase):
    def setUp(self):
        self.dashboard = dashboard_file.read()

    def test_is_what_its_source_makes(self):
        made = subprocess.run(
            [sys.executable, "-B", os.path.join(GRAFANA, "dashboard.py")],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        with open(dashboard_file.PATH) as file:
            self.assertEqual(
                file.read(), made, "run: deploy/grafana/dashboard.py > deploy/grafana/dashboards/banyan.json"
            )

    def test_keeps_to_the_schema(self):
        errors = [f"{list(e.absolute_path)}: {e.message}" for e in validator().iter_errors(self.dashboard)]
        self.assertEqual(errors, [])

    def test_the_schema_refuses_what_grafana_would_not_show(self):
        def panel_of(dashboard, kind):
            return next(p for p in dashboard["panels"] if p["type"] == kind)

        def spoil(change):
            spoiled = copy.deepcopy(self.dashboard)
            change(spoiled)
            return list(validator().iter_errors(spoiled))

        for change in (
            lambda d: panel_of(d, "timeseries").update(type="graph"),
            lambda d: panel_of(d, "stat")["targets"][0].pop("expr"),
            lambda d: panel_of(d, "stat")["targets"][0].pop("refId"),
            lambda d: panel_of(d, "timeseries")["datasource"].update(uid="another"),
            lambda d: panel_of(d, "timeseries")["targets"][0]["datasource"].update(uid="another"),
            lambda d: panel_of(d, "timeseries")["fieldConfig"]["defaults"].update(unit="seconds"),
            lambda d: panel_of(d, "timeseries")["gridPos"].update(w=25),
            lambda d: panel_of(d, "table").pop("transformations"),
            lambda d: panel_of(d, "stat").pop("description"),
        ):
            self.assertNotEqual(spoil(change), [])

    def test_panels_have_their_place(self):
        panels = self.dashboard["panels"]
        self.assertEqual(overlaps(panels), [])
        self.assertEqual(len({p["id"] for p in panels}), len(panels))
        for panel in panels:
            self.assertLessEqual(panel["gridPos"]["x"] + panel["gridPos"]["w"], 24, panel["title"])
        for panel in dashboard_file.panels_with_queries(self.dashboard):
            ids = [target["refId"] for target in panel["targets"]]
            self.assertEqual(len(set(ids)), len(ids), panel["title"])
        moved = copy.deepcopy(panels[1:3])
        moved[1]["gridPos"] = moved[0]["gridPos"]
        self.assertNotEqual(overlaps(moved), [])

    def test_rows_are_the_questions(self):
        titles = [p["title"] for p in self.dashboard["panels"] if p["type"] == "row"]
        self.assertEqual(titles, QUESTIONS)

    def test_data_source_is_provisioned(self):
        (source,) = read_yaml(GRAFANA, "provisioning", "datasources", "prometheus.yml")["datasources"]
        self.assertEqual((source["type"], source["uid"]), ("prometheus", "banyan-prometheus"))
        interval = read_yaml("deploy", "prometheus", "prometheus.yml")["global"]["scrape_interval"]
        self.assertEqual(source["jsonData"]["timeInterval"], interval)
        (provider,) = read_yaml(GRAFANA, "provisioning", "dashboards", "banyan.yml")["providers"]
        self.assertEqual(provider["type"], "file")


class RulesTest(unittest.TestCase):
    def test_alerts_are_those_of_the_runbook(self):
        alerts = {rule["alert"]: rule for rule in rules() if "alert" in rule}
        self.assertEqual(set(alerts), ALERTS)
        for name, rule in alerts.items():
            self.assertIn(rule["labels"]["severity"], ("critical", "warning"), name)
            self.assertTrue(rule["annotations"]["summary"], name)
            self.assertTrue(rule["annotations"]["description"], name)
            self.assertEqual(rule["annotations"]["runbook"], f"deploy/runbook.md#{name.lower()}")

    def test_runbook_has_an_entry_for_every_alert(self):
        with open(os.path.join(ROOT, "deploy", "runbook.md")) as file:
            headings = re.findall(r"^#+ +(.+?) *$", file.read(), re.MULTILINE)
        self.assertEqual(ALERTS - set(headings), set())


class NamesTest(unittest.TestCase):
    def test_every_metric_that_is_named_is_on_the_page(self):
        with open(os.path.join(ROOT, "docs", "metrics.md")) as file:
            known = set(re.findall(r"^\| `([a-z0-9_]+)` \|", file.read(), re.MULTILINE))
        recorded = {rule["record"] for rule in rules() if "record" in rule}
        expressions = [rule["expr"] for rule in rules()]
        for panel in dashboard_file.panels_with_queries(dashboard_file.read()):
            expressions += [target["expr"] for target in panel["targets"]]
        for expression in expressions:
            bare = re.sub(r'"[^"]*"', "", expression)
            for name in re.findall(r"(?<![\w:])(?:banyan|process)_\w+|instance\w*:\w+:\w+", bare):
                family = re.sub(r"_(bucket|sum|count)$", "", name)
                self.assertIn(name if ":" in name else family, known | recorded, expression)


if __name__ == "__main__":
    unittest.main()
