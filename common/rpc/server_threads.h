// Threads of the synchronous services beside a data plane.
//
// Both servers of Banyan answer their busy methods on a completion queue that one thread polls, and
// everything else (Describe, health, reflection, ...) with gRPC's synchronous services. Those wait
// on queues that do not poll: the data plane's thread reads every connection, and its own calls
// never wait for another thread to be woken. Services of the callback API bring a queue that polls,
// and a connection that is given to it wakes two threads for every packet
// (docs/adr/no-callback-services.md).
#pragma once

#include <grpcpp/server_builder.h>

namespace banyan {

// At most this many handlers run at once, streams that are watched and reflection included; further
// calls get RESOURCE_EXHAUSTED. `more`: handlers that wait for something of ours.
void LimitHandlerThreads(grpc::ServerBuilder& builder, int more = 0);

}  // namespace banyan
