#!/usr/bin/env python3
"""Asks a Banyan server one question and prints the answer as it comes, with generated stubs.

    docs/examples/generate_stubs.sh stubs
    PYTHONPATH=stubs /usr/bin/python3 docs/examples/chat.py "What is the capital of France?"

The answer goes to standard output, how long it took to standard error. Exit code 1: the server
refused or failed, and said why.
"""

import argparse
import sys
import time

import grpc
from proto.inference.v1 import inference_pb2, inference_pb2_grpc


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question")
    parser.add_argument("--server", default="127.0.0.1:50051", help="host:port or unix:/path")
    parser.add_argument("--system", help="system message")
    parser.add_argument("--temperature", type=float, help="0: always the likeliest token")
    parser.add_argument("--max_new_tokens", type=int)
    parser.add_argument("--timeout", type=float, default=120, help="seconds for the whole answer")
    options = parser.parse_args()

    request = inference_pb2.GenerateRequest()
    if options.system:
        request.chat.messages.add(role="system", content=options.system)
    request.chat.messages.add(role="user", content=options.question)
    # What stays unset comes from the checkpoint's generation_config.json.
    if options.temperature is not None:
        request.sampling.temperature = options.temperature
    if options.max_new_tokens is not None:
        request.sampling.max_new_tokens = options.max_new_tokens

    begin = time.monotonic()
    first = None
    with grpc.insecure_channel(options.server) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        try:
            # Started, then a Chunk whenever there is text, then Finished.
            for response in stub.Generate(request, timeout=options.timeout):
                event = response.WhichOneof("event")
                if event == "chunk":
                    if first is None:
                        first = time.monotonic() - begin
                    print(response.chunk.text, end="", flush=True)
                elif event == "finished":
                    finished = response.finished
        except grpc.RpcError as error:
            print(f"chat.py: {error.code().name}: {error.details()}", file=sys.stderr)
            return 1
    print()
    reason = inference_pb2.FinishReason.Name(finished.reason)
    first_ms = f"{1000 * first:.0f} ms" if first is not None else "-"
    print(
        f"{finished.completion_tokens} tokens, {reason}; first text after {first_ms}, "
        f"all after {1000 * (time.monotonic() - begin):.0f} ms",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
