#!/usr/bin/env python3
"""Asks a Banyan server one question without stubs and without its .proto files: the server says by
reflection what its messages look like.

    /usr/bin/python3 docs/examples/chat_by_reflection.py "What is the capital of France?"

Needs python3-grpcio and python3-protobuf.
"""

import argparse
import sys

import grpc
from server_reflection import ServerReflection, message_class

SERVICE = "banyan.inference.v1.Inference"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("question")
    parser.add_argument("--server", default="127.0.0.1:50051", help="host:port or unix:/path")
    parser.add_argument("--temperature", type=float, help="0: always the likeliest token")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for the whole answer")
    parser.add_argument("--list", action="store_true", help="first print services and methods")
    options = parser.parse_args()

    with grpc.insecure_channel(options.server) as channel:
        try:
            reflection = ServerReflection(channel)
            if options.list:
                print("services: " + " ".join(reflection.services()))
            pool = reflection.pool_with(SERVICE)
            service = pool.FindServiceByName(SERVICE)
            if options.list:
                print("methods: " + " ".join(m.name for m in service.methods))
            method = service.FindMethodByName("Generate")
            request = message_class(pool, method.input_type.full_name)()
            response_class = message_class(pool, method.output_type.full_name)
            generate = channel.unary_stream(
                f"/{SERVICE}/Generate",
                request_serializer=type(request).SerializeToString,
                response_deserializer=response_class.FromString,
            )

            message = request.chat.messages.add()
            message.role = "user"
            message.content = options.question
            if options.temperature is not None:
                request.sampling.temperature = options.temperature
            for response in generate(request, timeout=options.timeout):
                if response.WhichOneof("event") == "chunk":
                    print(response.chunk.text, end="", flush=True)
        except grpc.RpcError as error:
            print(
                f"chat_by_reflection.py: {error.code().name}: {error.details()}", file=sys.stderr
            )
            return 1
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
