"""A trunk and two expert shards under load, watched by a real Prometheus that reads the files of
deploy/prometheus. One expert is killed on the way and started again, so that errors have data too.

Needs Debian's packages prometheus and python3-yaml.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

import yaml

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests", "integration", "python"))
from with_cluster import Process  # noqa: E402

SCRAPE_S = 1
SLOWDOWN = int(os.environ.get("BANYAN_TEST_SLOWDOWN", "1"))  # with sanitizers
TIMEOUT_S = 60 * SLOWDOWN
BENCH_TIMEOUT_S = 5 * TIMEOUT_S


class Prometheus:
    """Its HTTP API."""

    def __init__(self, address):
        self.address = address

    def get(self, path, **query):
        """`data` of an answer; an error of Prometheus is raised with its reason."""
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path} {query}: {error.read().decode()}") from error

    def query(self, expression, at=None):
        return self.get("query", query=expression, **({"time": at} if at else {}))["result"]

    def value(self, expression):
        """The one value of an expression, None when there is none yet."""
        result = self.query(expression)
        return float(result[0]["value"][1]) if result else None

    def range(self, expression, start, end, step=SCRAPE_S):
        return self.get("query_range", query=expression, start=start, end=end, step=step)["result"]

    def wait_until(self, expression):
        """Until the expression has a result, which a comparison has only when it holds."""
        deadline = time.monotonic() + TIMEOUT_S
        while not self.query(expression):
            assert time.monotonic() < deadline, f"{expression}: no result within {TIMEOUT_S} s"
            time.sleep(SCRAPE_S / 5)  # there will be nothing new before the next scrape


class ObservedRun:
    """with ObservedRun(bin_dir) as run: run.load(); run.prometheus holds what happened from
    run.start to run.end (seconds since 1970)."""

    def __init__(self, bin_dir, model=os.path.join(ROOT, "deploy", "models", "demo")):
        self._bin_dir = bin_dir
        self._model = model
        self._processes = []
        self._folder = tempfile.TemporaryDirectory()

    def __enter__(self):
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for process in reversed(self._processes):
            process.kill()
        self._folder.cleanup()

    def _spawn(self, args):
        process = Process(args)
        self._processes.append(process)
        return process

    def _service(self, binary, *args, listen="127.0.0.1:0", metrics="127.0.0.1:0"):
        return self._spawn(
            [
                os.path.join(self._bin_dir, binary),
                f"--model={self._model}",
                f"--listen={listen}",
                f"--metrics_listen={metrics}",
                "--threads=1",
                *args,
            ]
        )

    def _start(self):
        self._experts = [self._service("banyan-expert", f"--shard={i}/2") for i in range(2)]
        self._addresses = [e.await_match(r" listening address=(\S+)") for e in self._experts]
        # A lost expert is waited for less long than the run leaves it away: some requests fail. Few
        # slots: they fill, and others wait.
        trunk = self._service(
            "banyan-trunk",
            "--experts=" + ",".join(self._addresses),
            "--expert_wait=1s",
            "--max_sequences=8",
        )
        self.trunk = trunk.await_match(r" ready address=(\S+)")
        self.metrics = [
            p.await_match(r"metrics_listening address=(\S+)") for p in [trunk, *self._experts]
        ]
        self.prometheus = Prometheus(self._start_prometheus())
        self.prometheus.wait_until("count(up == 1) == 3")
        self.start = time.time()

    def _start_prometheus(self):
        """On the files that are shipped, with the addresses and the pace of this run."""
        shipped = os.path.join(ROOT, "deploy", "prometheus")
        shutil.copytree(os.path.join(shipped, "rules"), os.path.join(self._folder.name, "rules"))
        with open(os.path.join(shipped, "prometheus.yml")) as file:
            config = yaml.safe_load(file)
        pace = {f"{what}_interval": f"{SCRAPE_S}s" for what in ("scrape", "evaluation")}
        config["global"].update(pace, scrape_timeout=f"{SCRAPE_S}s")
        ours = iter(self.metrics)
        for job in config["scrape_configs"]:
            # Under the names of the file, wherever the processes listen.
            job["static_configs"] = [
                {"targets": [next(ours)], "labels": {"instance": name}}
                for group in job["static_configs"]
                for name in group["targets"]
            ]
        path = os.path.join(self._folder.name, "prometheus.yml")
        with open(path, "w") as file:
            yaml.safe_dump(config, file)
        binary = shutil.which("prometheus")
        assert binary, "prometheus is not installed (Debian package prometheus)"
        prometheus = self._spawn(
            [
                binary,
                f"--config.file={path}",
                f"--storage.tsdb.path={self._folder.name}/data",
                "--web.listen-address=127.0.0.1:0",
            ]
        )
        prometheus.await_match(r'msg="(Server is ready)')
        return prometheus.await_match(r'msg="Listening on" address=(\S+)')

    def _bench(self, requests, concurrency, prompt_tokens, new_tokens):
        """Load in the background; what fails is seen in the metrics."""
        return self._spawn(
            [
                os.path.join(self._bin_dir, "banyan"),
                "bench",
                f"--server={self.trunk}",
                f"--requests={requests}",
                f"--concurrency={concurrency}",
                f"--prompt_tokens={prompt_tokens}",
                f"--max_new_tokens={new_tokens}",
            ]
        )

    def load(self, scale=1):
        """A few requests at a time, then more than there are slots, an expert that dies under them
        and comes back, and a calm end. `scale`: how many times the work."""
        self._bench(int(24 * scale), 3, 64, 48).wait(BENCH_TIMEOUT_S)
        answered = 'sum(banyan_trunk_requests_total{outcome=~"stop|length"})'
        before = self.prometheus.value(answered)
        crowd = self._bench(int(72 * scale), 14, 300, 64)
        self.prometheus.wait_until(f"{answered} > {before + 24 * scale}")
        self._experts[1].kill()
        self.prometheus.wait_until(
            'banyan_trunk_requests_total{outcome="unavailable"} > 0 and on () banyan_trunk_serving == 0'
        )
        self._experts[1] = self._service(
            "banyan-expert", "--shard=1/2", listen=self._addresses[1], metrics=self.metrics[2]
        )
        self.prometheus.wait_until("banyan_trunk_serving == 1")
        crowd.wait(BENCH_TIMEOUT_S)
        self._bench(int(24 * scale), 4, 96, 48).wait(BENCH_TIMEOUT_S)
        self.prometheus.wait_until(f"timestamp(banyan_trunk_steps_total) > {time.time()}")
        self.end = time.time()
