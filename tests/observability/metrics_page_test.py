"""docs/metrics.md is what the processes declare, and they declare every metric of the sources.

Usage: metrics_page_test.py TRUNK_ADDRESS TRUNK_METRICS EXPERT_METRICS... [write]
With `write` the page is written instead of compared.
"""

import difflib
import glob
import os
import re
import sys
import types

import exposition

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PAGE = os.path.join(ROOT, "docs", "metrics.md")
REGENERATE = """tests/integration/python/with_cluster.py --bin_dir build/release/bin \\
      --model deploy/models/demo tests/observability/metrics_page_test.py write"""

INTRODUCTION = f"""# Metrics

Made from the declarations in the sources, as a running trunk and expert tell them; the test
`metrics_page_test` compares. After a change:

    python3 {REGENERATE}

Every service answers `GET /metrics` on `--metrics_listen` (trunk 127.0.0.1:9101, experts 127.0.0.1:9111 and up; empty:
off) in Prometheus' text format, or in OpenMetrics 1.0 for who accepts that. Names are `banyan_<part>_<quantity>_<unit>`;
figures of the process have the names that all Prometheus client libraries use. Times are in seconds; histograms of times
have the bounds 50 us to 100 s, three a decade. A request that is refused before it reaches the engine counts in
`banyan_trunk_calls_total` only. Labels are bounded: by the cluster's configuration (`shard`, `replica`), else by the
program. How to read them together: [dashboard.md](dashboard.md).
"""
# Declared where the trunk has a GPU, which this test has not.
GPU_SOURCE = os.path.join(ROOT, "services", "trunk", "server", "gpu_metrics.cc")
COLUMNS = "| name | type | labels | what |\n|---|---|---|---|\n"


def table(families):
    lines = []
    for family in sorted(families, key=lambda f: f.name):
        labels = ", ".join(sorted(family.labels)) or "-"
        lines.append(f"| `{family.name}` | {family.kind} | {labels} | {family.help.rstrip('.')} |\n")
    return COLUMNS + "".join(lines)


def gpu_families():
    """From the source: gauges with the label gpu."""
    with open(GPU_SOURCE) as file:
        declared = re.findall(r'metrics\.(\w+)\(\s*"(banyan_\w+)",\s*"([^"]+)", labels\)', file.read())
    assert len(declared) >= 5, declared
    return [
        types.SimpleNamespace(name=name, kind=kind.lower(), labels={"gpu"}, help=text)
        for kind, name, text in declared
    ]


def page(trunk, expert):
    """From the families of both, by name."""
    both = trunk.keys() & expert.keys()
    return INTRODUCTION + "".join(
        f"\n## {title}\n\n{table(families)}"
        for title, families in [
            ("Trunk", [f for n, f in trunk.items() if n not in both]),
            ("Expert", [f for n, f in expert.items() if n not in both]),
            ("Both", [trunk[n] for n in both]),
            ("Trunk on a GPU", gpu_families()),
        ]
    )


def declared_in_sources():
    names = set()
    for folder in ("services/trunk", "services/expert", "common"):
        for path in glob.glob(os.path.join(ROOT, folder, "**", "*.cc"), recursive=True):
            with open(path) as file:
                if path == GPU_SOURCE:
                    continue
                names |= set(re.findall(r'"(banyan_[a-z0-9_]+[a-z0-9])"', file.read()))
    return names


def main():
    write = sys.argv[-1] == "write"
    trunk, expert = (exposition.families(exposition.fetch(address)[0]) for address in sys.argv[2:4])
    missing = declared_in_sources() - trunk.keys() - expert.keys()
    assert not missing, f"in the sources and not declared by a running process: {sorted(missing)}"
    made = page(trunk, expert)
    if write:
        with open(PAGE, "w") as file:
            file.write(made)
        return
    with open(PAGE) as file:
        found = file.read()
    difference = "".join(
        difflib.unified_diff(found.splitlines(True), made.splitlines(True), "docs/metrics.md", "declared")
    )
    assert not difference, f"{difference}\nrun: python3 {REGENERATE}"
    print(f"metrics_page_test passed: {len(trunk.keys() | expert.keys())} families")


if __name__ == "__main__":
    main()
