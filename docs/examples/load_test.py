#!/usr/bin/env python3
"""Puts a Banyan server under load and says what it gave: throughput, time to first token (TTFT),
time between tokens (ITL), whole answers.

    docs/examples/generate_stubs.sh stubs
    PYTHONPATH=stubs /usr/bin/python3 docs/examples/load_test.py --concurrency 4 --requests 32

Closed loop: each of --concurrency clients sends its next request when the last one has ended. It
ends after --requests requests, or after --seconds: what runs then is cancelled and not counted.
Times are the client's own. A chunk may carry several tokens (an answer read late); they count as
one gap each of an equal share. Exit code 1 when a request failed or none ended. `banyan bench`
measures more, and with less cost to the machine it runs on.
"""

import argparse
import json
import math
import sys
import threading
import time

import grpc
from proto.inference.v1 import inference_pb2, inference_pb2_grpc

QUESTIONS = [
    "What is the capital of France?",
    "What is the capital of Japan?",
    "Spell the word river.",
    "What is the opposite of hot?",
]


def percentile(values, share):
    """The smallest of VALUES that at least SHARE of them do not exceed; None of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


class Load:
    """What the clients share. All times in seconds, by time.monotonic()."""

    def __init__(self, options):
        self._options = options
        self._lock = threading.Lock()
        self._started = 0
        self.ttft, self.itl, self.whole, self.errors = [], [], [], []
        self.tokens = 0
        self.cut_off = 0
        self._deadline = time.monotonic() + options.seconds

    def _next(self):
        """Number of the request to send now, or None at the end."""
        with self._lock:
            if self._started >= self._options.requests or time.monotonic() >= self._deadline:
                return None
            self._started += 1
            return self._started - 1

    def client(self, stub):
        while (index := self._next()) is not None:
            request = inference_pb2.GenerateRequest(ignore_eos=True)
            request.chat.messages.add(role="user", content=QUESTIONS[index % len(QUESTIONS)])
            request.sampling.temperature = 0
            request.sampling.max_new_tokens = self._options.max_new_tokens
            self._one(stub, request)

    def _one(self, stub, request):
        sent = last = time.monotonic()
        ttft, gaps, tokens = None, [], 0
        try:
            for response in stub.Generate(request, timeout=max(0.001, self._deadline - sent)):
                count = len(response.chunk.token_ids)
                if response.WhichOneof("event") != "chunk" or count == 0:
                    continue
                now = time.monotonic()
                if ttft is None:
                    ttft = now - sent
                    count -= 1  # the first token is no gap
                    tokens += 1
                gaps += [(now - last) / count] * count if count else []
                tokens += count
                last = now
        except grpc.RpcError as error:
            with self._lock:
                if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                    self.cut_off += 1
                else:
                    self.errors.append(f"{error.code().name}: {error.details()}")
            return
        with self._lock:
            self.whole.append(time.monotonic() - sent)
            self.itl += gaps
            self.tokens += tokens
            if ttft is not None:
                self.ttft.append(ttft)


def run(options):
    """The figures of one run, ready for json."""
    load = Load(options)
    with grpc.insecure_channel(options.server) as channel:
        grpc.channel_ready_future(channel).result(timeout=options.connect_timeout)
        stub = inference_pb2_grpc.InferenceStub(channel)
        begin = time.monotonic()
        clients = [
            threading.Thread(target=load.client, args=(stub,)) for _ in range(options.concurrency)
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        elapsed = time.monotonic() - begin

    def milliseconds(values):
        found = {f"p{round(100 * s)}": percentile(values, s) for s in (0.5, 0.9, 0.99)}
        return {k: None if v is None else round(1000 * v, 3) for k, v in found.items()}

    return {
        "requests": len(load.whole),
        "cut_off": load.cut_off,
        "errors": load.errors,
        "seconds": round(elapsed, 3),
        "tokens": load.tokens,
        "tokens_per_second": round(load.tokens / elapsed, 1),
        "requests_per_second": round(len(load.whole) / elapsed, 2),
        "ttft_ms": milliseconds(load.ttft),
        "itl_ms": milliseconds(load.itl),
        "whole_ms": milliseconds(load.whole),
    }


def to_text(result):
    lines = [
        f"{result['requests']} requests in {result['seconds']:.2f} s, {result['cut_off']} cut off, "
        f"{len(result['errors'])} failed",
        f"{result['tokens']} tokens: {result['tokens_per_second']} tokens/s, "
        f"{result['requests_per_second']} requests/s",
        f"{'':8}{'p50':>10}{'p90':>10}{'p99':>10}",
    ]
    for name, key in (("TTFT", "ttft_ms"), ("ITL", "itl_ms"), ("whole", "whole_ms")):
        cells = ("-" if v is None else f"{v:.1f} ms" for v in result[key].values())
        lines.append(f"{name:8}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines + sorted(set(result["errors"])))


def main():
    def positive(kind):
        def parse(text):
            value = kind(text)
            if not 0 < value < 1e9:
                raise argparse.ArgumentTypeError(f"{text}: expected more than 0")
            return value

        return parse

    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--server", default="127.0.0.1:50051", help="host:port or unix:/path")
    parser.add_argument("--concurrency", type=positive(int), default=4)
    parser.add_argument("--requests", type=positive(int), default=32)
    parser.add_argument("--seconds", type=positive(float), default=60, help="longest run")
    parser.add_argument("--max_new_tokens", type=positive(int), default=32)
    parser.add_argument("--connect_timeout", type=positive(float), default=20)
    parser.add_argument("--output", choices=["text", "json"], default="text")
    options = parser.parse_args()
    try:
        result = run(options)
    except grpc.FutureTimeoutError:
        print(f"load_test.py: {options.server}: no answer", file=sys.stderr)
        return 1
    print(json.dumps(result) if options.output == "json" else to_text(result))
    return 0 if result["requests"] > 0 and not result["errors"] else 1


if __name__ == "__main__":
    sys.exit(main())
