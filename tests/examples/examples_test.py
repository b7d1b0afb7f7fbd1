"""Runs every example of docs/examples as its README says, against a real cluster.

Usage: examples_test.py TRUNK_ADDRESS TRUNK_METRICS EXPERT_METRICS... EXAMPLES_DIR
(tests/integration/python/with_cluster.py). Needs protoc, grpc_python_plugin, python3-grpcio.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request

TIMEOUT_S = 60
PARIS = "What is the capital of France?"


def run(*command, code=0, **environment):
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == code, f"{command}: exit code {done.returncode}\n{done.stderr}"
    return done


def metric(address, series):
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(series + " "):
                return float(line.split()[-1])
    return 0.0


def await_metric(address, series, least):
    """A call counts as ended only after its client has read the end."""
    deadline = time.monotonic() + TIMEOUT_S
    while (value := metric(address, series)) < least and time.monotonic() < deadline:
        time.sleep(0.05)
    return value


def check_chat(script, server, **environment):
    command = (sys.executable, script, "--server", server, "--temperature")
    good = run(*command, "0", PARIS, **environment)
    assert "Paris" in good.stdout, good.stdout
    bad = run(*command, "-1", PARIS, code=1, **environment)
    assert "INVALID_ARGUMENT: " in bad.stderr and "temperature" in bad.stderr, bad.stderr
    assert bad.stdout == "", bad.stdout
    return good


def check_load(script, server, metrics, **environment):
    command = (sys.executable, script, "--server", server, "--max_new_tokens", "8", "--output")
    answered = 'banyan_trunk_calls_total{outcome="ok"}'
    before = await_metric(metrics, answered, 1)  # of check_chat
    done = run(*command, "json", "--requests", "12", "--concurrency", "3", **environment)
    result = json.loads(done.stdout)
    assert await_metric(metrics, answered, before + 12) == before + 12, done.stdout
    assert result["requests"] == 12 and result["errors"] == [] and result["cut_off"] == 0, result
    assert result["tokens"] == 12 * 8, result
    for name in ("ttft_ms", "itl_ms", "whole_ms"):
        figures = result[name]
        assert 0 <= figures["p50"] <= figures["p90"] <= figures["p99"], result
    assert 0 < result["ttft_ms"]["p50"] <= result["whole_ms"]["p99"], result

    text = run(*command, "text", "--requests", "2", **environment).stdout.splitlines()
    assert text[0].startswith("2 requests in ") and text[0].endswith(" 0 failed"), text
    assert [line.split()[0] for line in text[3:]] == ["TTFT", "ITL", "whole"], text

    # Far more requests than this time allows, and the run ends by itself.
    bounded = run(*command, "json", "--requests", "1000000", "--seconds", "4", **environment)
    result = json.loads(bounded.stdout)
    assert 0 < result["requests"] < 1000000 and result["errors"] == [], result


def main():
    server, metrics, examples = sys.argv[1], sys.argv[2], sys.argv[-1]
    with tempfile.TemporaryDirectory() as stubs:
        run(f"{examples}/generate_stubs.sh", stubs)
        chat = check_chat(f"{examples}/chat.py", server, PYTHONPATH=stubs)
        assert " tokens, STOP; first text after " in chat.stderr, chat.stderr
        check_load(f"{examples}/load_test.py", server, metrics, PYTHONPATH=stubs)
    # No stubs and no .proto files: PYTHONPATH names nothing of ours.
    check_chat(f"{examples}/chat_by_reflection.py", server, PYTHONPATH="")
    listed = run(
        sys.executable, f"{examples}/chat_by_reflection.py", "--server", server, "--list", PARIS
    ).stdout.splitlines()
    assert listed[0].startswith("services: ") and "banyan.inference.v1.Inference" in listed[0]
    assert listed[1] == "methods: Generate Tokenize Detokenize GetModelInfo WatchLoad", listed
    print("examples_test passed")


if __name__ == "__main__":
    main()
