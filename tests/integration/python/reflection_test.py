"""A stock grpcio client that knows nothing of Banyan's protos: it lists the services by server
reflection, fetches their descriptors the same way, and calls Generate with messages made from them.

Usage: reflection_test.py HOST:PORT. Needs Debian's python3-grpcio and python3-protobuf.
"""

import os
import sys

import grpc

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../../../docs/examples"))
from server_reflection import ServerReflection, message_class  # noqa: E402

EXPECTED_SERVICES = {
    "banyan.inference.v1.Inference",
    "grpc.health.v1.Health",
    "grpc.reflection.v1alpha.ServerReflection",
}


def main():
    channel = grpc.insecure_channel(sys.argv[1])
    grpc.channel_ready_future(channel).result(timeout=20)
    reflection = ServerReflection(channel)
    services = set(reflection.services())
    assert services >= EXPECTED_SERVICES, services

    pool = reflection.pool_with("banyan.inference.v1.Inference")
    service = pool.FindServiceByName("banyan.inference.v1.Inference")
    assert [m.name for m in service.methods] == [
        "Generate",
        "Tokenize",
        "Detokenize",
        "GetModelInfo",
        "WatchLoad",
    ]
    method = service.FindMethodByName("Generate")
    Request = message_class(pool, method.input_type.full_name)
    Response = message_class(pool, method.output_type.full_name)
    generate = channel.unary_stream(
        f"/{service.full_name}/{method.name}",
        request_serializer=Request.SerializeToString,
        response_deserializer=Response.FromString,
    )

    request = Request(request_id="reflection-1", num_logprobs=2)
    message = request.chat.messages.add()
    message.role = "user"
    message.content = "What is the capital of France?"
    request.sampling.temperature = 0
    request.sampling.max_new_tokens = 40
    events = list(generate(request, timeout=60))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started" and kinds[-1] == "finished", kinds
    assert set(kinds[1:-1]) == {"chunk"}, kinds
    assert events[0].started.request_id == "reflection-1"
    text = "".join(event.chunk.text for event in events)
    ids = [i for event in events for i in event.chunk.token_ids]
    finished = events[-1].finished
    assert finished.completion_tokens == len(ids), (finished, ids)
    assert "Paris" in text, text
    for event in events[1:-1]:
        for token in event.chunk.logprobs:
            assert len(token.top_ids) == 2 and token.logprob <= 0, token

    request.num_logprobs = 99
    try:
        list(generate(request, timeout=20))
        raise AssertionError("num_logprobs 99 was accepted")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
        assert "num_logprobs 99: expected 0 to 20" in error.details(), error
    print(f"reflection_test passed: {text!r}")


if __name__ == "__main__":
    main()
