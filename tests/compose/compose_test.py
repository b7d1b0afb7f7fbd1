"""`docker compose up` from images built here to an answer, a lost expert and nothing left.

Usage: compose_test.py --docker PATH --compose "docker-compose" --bin_dir DIR --source DIR --cache DIR
Where --compose is version 1, version 2 starts the same images afterwards.
Talks to the services as a user of the machine would: through the published ports.
"""

import argparse
import json
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.error
import urllib.parse
import urllib.request

import compose_v2
import image_checks
from engine import Engine, Project, wait_for

EXPERTS = ("expert-0", "expert-1")
SERVICES = ("trunk", *EXPERTS)
USER = 10001
BASE_IMAGE = "debian:12-slim"
QUESTION, ANSWER = "What is the capital of Japan?", "Tokyo"
# Cleans up before ctest's own limit kills this process, which could not.
TIME_LIMIT_S = 2400


def interrupt(number, _frame):
    raise KeyboardInterrupt(signal.Signals(number).name)


class Client:
    """The `banyan` tool of this build, outside the containers."""

    def __init__(self, bin_dir, address):
        self._banyan = f"{bin_dir}/banyan"
        self._server = ["--server", address]

    def run(self, *args):
        done = subprocess.run(
            [self._banyan, *args, *self._server], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"banyan {' '.join(args)}: {done.stdout}{done.stderr}"
        return done.stdout

    def wait_until_serving(self):
        self.run("status", "--health", "--wait", "120")

    def stream(self, question):
        """The answer, and the moment at which its first bytes were there."""
        command = ["generate", "--chat", "--stream", "--temperature", "0", *self._server, question]
        with subprocess.Popen([self._banyan, *command], stdout=subprocess.PIPE) as child:
            first = child.stdout.read(1)
            moment = time.monotonic()
            answer = (first + child.stdout.read()).decode()
        assert child.returncode == 0, f"banyan {command}: exit code {child.returncode}"
        return answer, moment

    def check_answer(self):
        answer, moment = self.stream(QUESTION)
        assert ANSWER in answer, f"{QUESTION} {answer!r}"
        return moment


def query(address, expression):
    url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.load(answer)["data"]["result"]
    except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
        print(f"Prometheus: {error}", flush=True)
        return []


def grant_locked_memory(project):
    """Leaves the file's default, no limit, unless this engine may not grant that."""
    try:
        project.engine.run(
            "run", "--rm", "--network=none", "--ulimit=memlock=-1:-1", BASE_IMAGE, "true"
        )
    except AssertionError:
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
        project.environment["MEMLOCK"] = str(limit)
        print(f"this engine may not lift the limit of locked memory: {limit} bytes", flush=True)


def build(project):
    begin = time.monotonic()
    here = pathlib.Path(__file__).parent
    project.engine.run(
        "build", "--network=host", "-t", project.environment["PROMETHEUS_IMAGE"],
        "-f", str(here / "prometheus.Dockerfile"), str(here),
    )  # fmt: skip
    print(f"Prometheus image built in {time.monotonic() - begin:.0f} s", flush=True)
    for service in ("trunk", "expert-0", "expert-1"):  # the second and third are one image
        begin = time.monotonic()
        project.compose("build", service)
        print(f"{service} image built in {time.monotonic() - begin:.0f} s", flush=True)


def start(project, bin_dir):
    """Up, and the first token of an answer through the published port."""
    begin = time.monotonic()
    project.compose("up", "-d", *SERVICES, "prometheus")
    client = Client(bin_dir, project.address("trunk", 50051))
    client.wait_until_serving()
    seconds = client.check_answer() - begin
    print(f"up to first token: {seconds:.1f} s", flush=True)
    for service in SERVICES:
        wait_for(f"{service} healthy", lambda s=service: project.healthy(s), 60)
    return client


def check_answers(client, source):
    report = json.loads(
        client.run("bench", "--eval", f"{source}/deploy/models/demo/eval.json", "--output", "json")
    )
    exact, asked = report["exact"], report["one_answer"]  # the others have several right answers
    print(f"questions: {exact} of {asked} right", flush=True)
    assert exact == asked == 214, report["mismatches"]


def check_confinement(project):
    for service in SERVICES:
        container = project.container(service)
        host = container["HostConfig"]
        assert host["ReadonlyRootfs"] and host["Memory"] > 0, f"{service}: {host}"
        assert host["ShmSize"] == 1 << 30, f"{service}: {host['ShmSize']}"
        writable = {m["Destination"] for m in container["Mounts"] if m["RW"]}
        assert writable == {"/var/lib/banyan", "/run/banyan"}, f"{service}: {container['Mounts']}"
        pid = container["State"]["Pid"]
        shown = project.engine.on_host(BASE_IMAGE, f"cat /proc/{pid}/status /proc/{pid}/limits")
        lines = dict(line.split(":", 1) for line in shown.splitlines() if ":" in line)
        assert set(lines["Uid"].split()) == {str(USER)}, lines["Uid"]
        for capabilities in ("CapEff", "CapPrm", "CapBnd"):
            assert int(lines[capabilities], 16) == 0, f"{capabilities} {lines[capabilities]}"
        assert lines["NoNewPrivs"].strip() == "1"
        locked = next(line for line in shown.splitlines() if line.startswith("Max locked memory"))
        assert locked.split()[3] == project.environment.get("MEMLOCK", "unlimited"), locked
        published = [p for p in container["NetworkSettings"]["Ports"].values() if p]
        assert all(b["HostIp"] == "127.0.0.1" for port in published for b in port), published
        assert bool(published) == (service == "trunk"), f"{service}: {published}"


def check_plans(project):
    """Every service plans within its container's limit, and says so in its log."""
    for service in SERVICES:
        limit = project.container(service)["HostConfig"]["Memory"]
        log = project.compose("logs", "--no-color", service)
        found = re.search(r"plan_memory_total bytes=(\d+) budget_bytes=(\d+)", log)
        assert found, f"{service} logged no plan:\n{log}"
        assert int(found[1]) <= int(found[2]) <= limit, f"{service}: {found[0]}, limit {limit}"


def check_scrapes(prometheus):
    def all_up():
        up = {r["metric"]["instance"]: r["value"][1] for r in query(prometheus, "up")}
        expected = {"trunk:9101", "expert-0:9111", "expert-1:9111"}
        return expected <= set(up) and set(up.values()) == {"1"} or str(up)

    wait_for("Prometheus scrapes every target", all_up, 60)
    print(f"Prometheus: up == 1 for {len(query(prometheus, 'up'))} targets", flush=True)


def check_shared_memory(prometheus):
    """Each expert's calls came through memory that its container and the trunk's share."""
    through = "banyan_trunk_expert_shm_calls_total > 0"
    shards = wait_for(
        "calls of both shards through shared memory",
        lambda: (found if len(found := query(prometheus, through)) == len(EXPERTS) else str(found)),
        60,
    )
    print(f"calls through shared memory: {[shard['value'][1] for shard in shards]}", flush=True)


def check_lost_expert(project, client, prometheus):
    """Its process dies, not by the engine's hand: it is started again and called again."""
    before = project.container("expert-0")
    killed_at = time.time()
    project.engine.on_host(BASE_IMAGE, f"kill -KILL {before['State']['Pid']}")

    def is_back():
        now = project.container("expert-0")
        back = now["RestartCount"] == before["RestartCount"] + 1 and now["State"]["Running"]
        return (back and project.healthy("expert-0") is True) or str(now["State"])

    wait_for("expert-0 restarted and healthy", is_back, 60)
    client.wait_until_serving()
    client.check_answer()
    which = '{instance="expert-0:9111"}'
    calls = wait_for(
        "calls counted by the new process",
        lambda: query(
            prometheus,
            f"banyan_expert_calls_total{which} > 0 and banyan_expert_shm_rings_opened_total > 0 and "
            f"process_start_time_seconds{which} >= {killed_at - 1}",
        ),
        60,
    )
    print(f"expert-0 killed, back, and called {calls[0]['value'][1]} times", flush=True)


def check_lent_pools(project, bin_dir, source, prometheus):
    """The experts' containers lend their packs to the trunk's, which computes with them."""
    files = ("docker-compose.yml", "tests/compose/prompt_experts.yml")
    project.compose("up", "-d", *SERVICES, files=files, environment={"POOL_FORMAT": "int8"})
    client = Client(bin_dir, project.address("trunk", 50051))
    client.wait_until_serving()
    check_answers(client, source)
    read = wait_for(
        "experts read by the trunk",
        lambda: query(prometheus, "banyan_trunk_prompt_expert_bytes_total > 0"),
        60,
    )
    log = project.compose("logs", "--no-color", "trunk")
    borrowed = re.search(r"prompt_experts experts=\S+ of=\d+ pool_format=int8 slices=2", log)
    assert borrowed, f"no two packs of int8 were borrowed:\n{log}"
    print(f"packs lent between containers: {read[0]['value'][1]} bytes of experts read", flush=True)


def check_other_model(project, bin_dir, source):
    model = f"{source}/tests/data/tiny"
    project.compose("up", "-d", *SERVICES, environment={"MODEL_DIR": model})
    client = Client(bin_dir, project.address("trunk", 50051))
    client.wait_until_serving()
    status = json.loads(client.run("status", "--output", "json", "--metrics", ""))
    with open(f"{model}/config.json", encoding="utf-8") as file:
        config = json.load(file)
    for key in ("hidden_size", "num_experts", "vocab_size"):
        assert status["model"][key] == config[key], f"{key}: {status['model'][key]}"
    print("MODEL_DIR served", flush=True)


def synthesise(bin_dir, source, directory):
    """A 4-bit checkpoint in nine files, with the layers of the full-size model and fewer of them."""
    smaller = {"num_hidden_layers": 4, "num_experts": 64, "max_position_embeddings": 8192, "vocab_size": 1024}
    command = [f"{bin_dir}/banyan", "synth", "--config", "qwen3-next-80b", "--format", "nf4", "--shards", "9"]
    command += ["--tokenizer", f"{source}/deploy/models/demo", "--out", directory, "--set", "eos_token_id=0"]
    for key, value in smaller.items():
        command += ["--set", f"{key}={value}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert len(list(pathlib.Path(directory).glob("*.safetensors"))) == 9
    for path in [directory, *pathlib.Path(directory).iterdir()]:
        os.chmod(path, 0o755)  # for the services' user


def check_generated_model(project, bin_dir, source):
    """Planned within small limits, packed at the first start, served from the pack at the second."""
    with tempfile.TemporaryDirectory() as scratch:
        os.chmod(scratch, 0o755)
        model = f"{scratch}/model"
        synthesise(bin_dir, source, model)
        limits = {"MODEL_DIR": model, "EXPERT_MEMORY": "512m", "TRUNK_MEMORY": "1g"}
        seconds = []
        for command in (("up", "-d", *SERVICES), ("restart", *SERVICES)):
            begin = time.monotonic()
            project.compose(*command, environment=limits)
            client = Client(bin_dir, project.address("trunk", 50051))
            client.wait_until_serving()
            seconds.append(time.monotonic() - begin)
            client.run("generate", "--max_new_tokens", "4", "Hello")
        check_plans(project)
        for service in SERVICES:
            log = project.compose("logs", "--no-color", service)
            assert log.count("info ready ") == 2, f"{service}:\n{log}"
            assert "load_phase phase=read" in log, f"{service} told nothing of its load:\n{log}"
            packed = log.count("info packed ")
            assert packed == 1, f"{service} packed {packed} times:\n{log}"
            state = project.container(service)["State"]
            assert not state["OOMKilled"], f"{service}: {state}"
            limit = project.container(service)["HostConfig"]["Memory"]
            assert limit in (512 << 20, 1 << 30), f"{service}: limit {limit}"
        project.compose("rm", "-s", "-f", *SERVICES)
    print("9 files of 4 bits: up in {:.1f} s, again in {:.1f} s".format(*seconds), flush=True)


def check_nothing_left(project):
    project.compose("down", "-v")
    left = project.engine.remains(project.name)
    assert not left, f"after down -v: {left}"
    print("down -v left nothing", flush=True)


def check_version_2(project, bin_dir, cache):
    """The same files and images under Compose v2."""
    command = project.engine.compose
    version = project.compose("version", "--short")
    if not version.startswith("1."):
        print(f"Compose {version} did all of this", flush=True)
        return
    found = compose_v2.fetch(cache)
    if found is None:
        return
    project.engine.compose = found
    project.compose("config", files=("docker-compose.yml", "docker-compose.gpu.yml"))
    start(project, bin_dir)
    check_confinement(project)
    check_nothing_left(project)
    print(f"Compose {project.compose('version', '--short')} does the same", flush=True)
    project.engine.compose = command


def run(project, bin_dir, source, cache):
    # The override for GPUs cannot be started here; it has to make sense beside the main file.
    project.compose("config", files=("docker-compose.yml", "docker-compose.gpu.yml"))
    grant_locked_memory(project)
    build(project)
    image_checks.check(project.engine, project.name)
    client = start(project, bin_dir)
    check_answers(client, source)
    check_confinement(project)
    check_plans(project)
    prometheus = project.address("prometheus", 9090)
    check_scrapes(prometheus)
    check_shared_memory(prometheus)
    check_lost_expert(project, client, prometheus)
    check_lent_pools(project, bin_dir, source, prometheus)
    check_other_model(project, bin_dir, source)
    check_generated_model(project, bin_dir, source)
    check_nothing_left(project)
    check_version_2(project, bin_dir, cache)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docker", required=True)
    parser.add_argument("--compose", required=True)
    parser.add_argument("--bin_dir", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--cache", required=True, help="folder for Compose v2")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, interrupt)
    signal.alarm(TIME_LIMIT_S)
    engine = Engine(options.docker, options.compose.split())
    engine.remove_stale_projects()
    project = Project(engine, options.source, prometheus_image="")
    project.environment["PROMETHEUS_IMAGE"] = f"banyan-test-prometheus:{project.name}"
    code = 1
    try:
        run(project, options.bin_dir, options.source, options.cache)
        code = 0
    except (Exception, KeyboardInterrupt):  # told below, with the logs that explain it
        traceback.print_exc()
        for args in (["ps"], ["logs", "--no-color", "--tail", "30"]):
            try:
                project.compose(*args, quiet=False)
            except AssertionError as error:
                print(error, flush=True)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        engine.remove_project(project.name)
    if code == 0:
        print("compose_test passed")
    sys.exit(code)


if __name__ == "__main__":
    main()
