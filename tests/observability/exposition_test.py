"""What a trunk and its experts expose keeps to Prometheus' rules: promtool has nothing to say,
OpenMetrics parses and has the same families, there are enough of them and not too many series.

Usage: exposition_test.py TRUNK_ADDRESS TRUNK_METRICS EXPERT_METRICS...
Needs Debian's packages prometheus (promtool) and python3-prometheus-client.
"""

import re
import subprocess
import sys

from prometheus_client.openmetrics import parser

import exposition

LEAST_FAMILIES = 60
# With two shards of one replica: nine outcomes or phases, each a series; 23 lines when they are
# histograms (21 buckets, sum, count).
MOST_LINES = 1000
MOST_SERIES_OF_A_FAMILY = 9


def promtool(text):
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True
    )
    said = (checked.stdout + checked.stderr).strip()
    assert checked.returncode == 0 and not said, f"promtool check metrics: {said}"


def main():
    # The check must be able to fail.
    try:
        promtool("# TYPE banyan_test counter\nbanyan_test 1\n")
    except AssertionError:
        pass
    else:
        raise RuntimeError("promtool accepts a counter without help and without _total")

    names = set()
    for address in sys.argv[2:]:
        text, content_type = exposition.fetch(address)
        assert content_type.startswith("text/plain; version=0.0.4"), content_type
        promtool(text)
        families = exposition.families(text)
        names |= families.keys()
        assert len(text.splitlines()) <= MOST_LINES, f"{address}: {len(text.splitlines())} lines"
        for family in families.values():
            lines = 23 if family.kind == "histogram" else 1
            series = family.samples / lines
            assert series <= MOST_SERIES_OF_A_FAMILY, f"{family.name}: {series} series"

        text, content_type = exposition.fetch(address, exposition.OPEN_METRICS)
        assert content_type.startswith("application/openmetrics-text"), content_type
        parsed = {
            family.name + ("_total" if family.type == "counter" else "")
            for family in parser.text_string_to_metric_families(text)
        }
        assert parsed == families.keys(), parsed ^ families.keys()
    ours = [name for name in names if re.match("banyan_|process_", name)]
    assert len(ours) == len(names), names - set(ours)
    assert len(names) >= LEAST_FAMILIES, f"{len(names)} families, expected {LEAST_FAMILIES}"
    print(f"exposition_test passed: {len(names)} families")


if __name__ == "__main__":
    main()
