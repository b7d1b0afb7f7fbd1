"""A stock grpcio client that knows nothing of Banyan's protos: it lists the services by server
reflection, fetches their descriptors the same way, and calls Generate with messages made from them.

Usage: reflection_test.py HOST:PORT. Needs Debian's python3-grpcio and python3-protobuf.
"""

import sys

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

REFLECTION = "grpc.reflection.v1alpha"
EXPECTED_SERVICES = {
    "banyan.inference.v1.Inference",
    "grpc.health.v1.Health",
    "grpc.reflection.v1alpha.ServerReflection",
}


def message_class(pool, name):
    return message_factory.MessageFactory(pool).GetPrototype(pool.FindMessageTypeByName(name))


def reflection_pool():
    """The part of the reflection protocol that is used here, as in grpc's reflection.proto."""
    Field = descriptor_pb2.FieldDescriptorProto
    proto = descriptor_pb2.FileDescriptorProto(
        name="reflection.proto", package=REFLECTION, syntax="proto3"
    )

    def add(message, *fields):
        descriptor = proto.message_type.add(name=message)
        for name, number, kind, label, type_name in fields:
            descriptor.field.add(
                name=name, number=number, type=kind, label=label, type_name=type_name
            )

    one, many = Field.LABEL_OPTIONAL, Field.LABEL_REPEATED
    text, raw, sub = Field.TYPE_STRING, Field.TYPE_BYTES, Field.TYPE_MESSAGE
    add(
        "ServerReflectionRequest",
        ("file_by_filename", 3, text, one, None),
        ("file_containing_symbol", 4, text, one, None),
        ("list_services", 7, text, one, None),
    )
    add("ServiceResponse", ("name", 1, text, one, None))
    add("ListServiceResponse", ("service", 1, sub, many, f".{REFLECTION}.ServiceResponse"))
    add("FileDescriptorResponse", ("file_descriptor_proto", 1, raw, many, None))
    add(
        "ServerReflectionResponse",
        ("file_descriptor_response", 4, sub, one, f".{REFLECTION}.FileDescriptorResponse"),
        ("list_services_response", 6, sub, one, f".{REFLECTION}.ListServiceResponse"),
    )
    # proto3 would not send an empty list_services: it is one of a oneof in the real protocol.
    descriptor = proto.message_type[0]
    descriptor.oneof_decl.add(name="message_request")
    for field in descriptor.field:
        field.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(proto)
    return pool


class Reflection:
    def __init__(self, channel):
        pool = reflection_pool()
        self._request = message_class(pool, f"{REFLECTION}.ServerReflectionRequest")
        response = message_class(pool, f"{REFLECTION}.ServerReflectionResponse")
        self._call = channel.stream_stream(
            f"/{REFLECTION}.ServerReflection/ServerReflectionInfo",
            request_serializer=self._request.SerializeToString,
            response_deserializer=response.FromString,
        )

    def ask(self, **what):
        return next(self._call(iter([self._request(**what)]), timeout=20))

    def services(self):
        return {s.name for s in self.ask(list_services="").list_services_response.service}

    def pool_with(self, symbol):
        """A descriptor pool with the file of SYMBOL and everything that imports."""
        files = {}

        def fetch(response):
            for raw in response.file_descriptor_response.file_descriptor_proto:
                proto = descriptor_pb2.FileDescriptorProto.FromString(raw)
                files[proto.name] = proto
            for proto in list(files.values()):
                for name in proto.dependency:
                    if name not in files:
                        fetch(self.ask(file_by_filename=name))

        fetch(self.ask(file_containing_symbol=symbol))
        assert files, f"no descriptor of {symbol}"
        pool = descriptor_pool.DescriptorPool()

        def add(name):
            proto = files.pop(name, None)
            if proto is not None:
                for dependency in proto.dependency:
                    add(dependency)
                pool.Add(proto)

        while files:
            add(next(iter(files)))
        return pool


def main():
    channel = grpc.insecure_channel(sys.argv[1])
    grpc.channel_ready_future(channel).result(timeout=20)
    reflection = Reflection(channel)
    services = reflection.services()
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
