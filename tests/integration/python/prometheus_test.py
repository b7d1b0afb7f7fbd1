"""A real Prometheus scrapes a trunk and its experts; its API is asked what it got.

Usage: prometheus_test.py TRUNK_ADDRESS TRUNK_METRICS EXPERT_METRICS...
Needs Debian's package prometheus.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

TIMEOUT_S = 60 * int(os.environ.get("BANYAN_TEST_SLOWDOWN", "1"))
CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: trunk
    static_configs: [{{targets: ["{trunk}"]}}]
  - job_name: experts
    static_configs: [{{targets: {experts}}}]
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def get(address, path, **query):
    url = f"http://{address}{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)


def query(address, expression):
    return get(address, "/api/v1/query", query=expression)["data"]["result"]


def check(prometheus, num_experts):
    """None once everything is there, else what is missing."""
    up = {r["metric"]["instance"]: r["value"][1] for r in query(prometheus, "up")}
    if len(up) != 1 + num_experts or set(up.values()) != {"1"}:
        return f"targets: {up}"
    for expression, least in [
        ('banyan_build_info{binary="banyan-trunk"}', 1),
        ('banyan_build_info{binary="banyan-expert"}', num_experts),
        ("banyan_trunk_serving == 1", 1),
        ("banyan_trunk_steps_total > 0", 1),
        ('banyan_trunk_calls_total{outcome="ok"}', 1),
        ("banyan_trunk_ttft_seconds_count > 0", 1),
        ("banyan_trunk_expert_replica_ready == 1", num_experts),
        ("banyan_expert_ready == 1", num_experts),
        ("banyan_expert_pool_bytes > 0", num_experts),
        ("process_resident_memory_bytes > 0", 1 + num_experts),
        ("histogram_quantile(0.5, banyan_trunk_step_seconds_bucket) > 0", 1),
    ]:
        found = query(prometheus, expression)
        if len(found) < least:
            return f"{expression}: {len(found)} series, expected {least}"
    return None


def main():
    trunk, experts = sys.argv[2], sys.argv[3:]
    binary = shutil.which("prometheus")
    assert binary, "prometheus is not installed (Debian package prometheus)"
    with tempfile.TemporaryDirectory() as folder:
        config = os.path.join(folder, "prometheus.yml")
        with open(config, "w") as file:
            file.write(CONFIG.format(trunk=trunk, experts=json.dumps(experts)))
        address = f"127.0.0.1:{free_port()}"
        child = subprocess.Popen(
            [
                binary,
                f"--config.file={config}",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address={address}",
                "--log.level=error",
            ]
        )
        try:
            missing = "no answer from Prometheus"
            deadline = time.monotonic() + TIMEOUT_S
            while missing is not None:
                assert child.poll() is None, "prometheus ended by itself"
                assert time.monotonic() < deadline, missing
                try:
                    missing = check(address, len(experts))
                except (urllib.error.URLError, ConnectionError) as error:
                    missing = str(error)
                if missing is not None:
                    time.sleep(0.2)  # between two scrapes; the deadline above decides
            names = get(address, "/api/v1/label/__name__/values")["data"]
            ours = [n for n in names if n.startswith("banyan_")]
            metadata = get(address, "/api/v1/metadata")["data"]
            for name in ours:
                family = name
                # OpenMetrics, which Prometheus asks for, names a counter's family without _total.
                for suffix in ("_bucket", "_count", "_sum", "_total"):
                    if family not in metadata and family.endswith(suffix):
                        family = family[: -len(suffix)]
                assert metadata[family][0]["help"], f"{family} has no help text"
            print(f"prometheus_test passed: {len(ours)} series names of banyan")
        finally:
            child.terminate()
            child.wait(timeout=30)


if __name__ == "__main__":
    main()
