"""Descriptors of a gRPC server's services, fetched from the server itself.

Needs grpcio and protobuf alone: the part of the reflection protocol that is used here is declared
below, as in grpc's reflection.proto (v1alpha).
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "grpc.reflection.v1alpha"
TIMEOUT_S = 20


def message_class(pool, name):
    """The Python class of the message NAME of POOL."""
    descriptor = pool.FindMessageTypeByName(name)
    if hasattr(message_factory, "GetMessageClass"):  # protobuf 4 and later
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory(pool).GetPrototype(descriptor)


def _protocol():
    field = descriptor_pb2.FieldDescriptorProto
    proto = descriptor_pb2.FileDescriptorProto(
        name="reflection.proto", package=PACKAGE, syntax="proto3"
    )

    def add(message, *fields):
        descriptor = proto.message_type.add(name=message)
        for name, number, kind, label, type_name in fields:
            descriptor.field.add(
                name=name, number=number, type=kind, label=label, type_name=type_name
            )

    one, many = field.LABEL_OPTIONAL, field.LABEL_REPEATED
    text, raw, message = field.TYPE_STRING, field.TYPE_BYTES, field.TYPE_MESSAGE
    add(
        "ServerReflectionRequest",
        ("file_by_filename", 3, text, one, None),
        ("file_containing_symbol", 4, text, one, None),
        ("list_services", 7, text, one, None),
    )
    add("ServiceResponse", ("name", 1, text, one, None))
    add("ListServiceResponse", ("service", 1, message, many, f".{PACKAGE}.ServiceResponse"))
    add("FileDescriptorResponse", ("file_descriptor_proto", 1, raw, many, None))
    add(
        "ServerReflectionResponse",
        ("file_descriptor_response", 4, message, one, f".{PACKAGE}.FileDescriptorResponse"),
        ("list_services_response", 6, message, one, f".{PACKAGE}.ListServiceResponse"),
    )
    # One of a oneof: otherwise an empty list_services would not be sent.
    request = proto.message_type[0]
    request.oneof_decl.add(name="message_request")
    for request_field in request.field:
        request_field.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(proto)
    return pool


class ServerReflection:
    def __init__(self, channel):
        pool = _protocol()
        self._request = message_class(pool, f"{PACKAGE}.ServerReflectionRequest")
        response = message_class(pool, f"{PACKAGE}.ServerReflectionResponse")
        self._call = channel.stream_stream(
            f"/{PACKAGE}.ServerReflection/ServerReflectionInfo",
            request_serializer=self._request.SerializeToString,
            response_deserializer=response.FromString,
        )

    def _ask(self, **what):
        return next(self._call(iter([self._request(**what)]), timeout=TIMEOUT_S))

    def services(self):
        """Names of the services, sorted."""
        return sorted(s.name for s in self._ask(list_services="").list_services_response.service)

    def pool_with(self, symbol):
        """A descriptor pool with the file that declares SYMBOL and all that it imports."""
        files = {}

        def take(response):
            for raw in response.file_descriptor_response.file_descriptor_proto:
                proto = descriptor_pb2.FileDescriptorProto.FromString(raw)
                files[proto.name] = proto
                for name in proto.dependency:
                    if name not in files:
                        take(self._ask(file_by_filename=name))

        take(self._ask(file_containing_symbol=symbol))
        if not files:
            raise LookupError(f"the server has no descriptor of {symbol}")
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
