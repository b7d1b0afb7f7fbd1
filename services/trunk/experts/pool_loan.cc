#include "services/trunk/experts/pool_loan.h"

#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>

#include <optional>
#include <utility>

#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/rpc/channel_settings.h"
#include "common/rpc/file_passing.h"
#include "common/rpc/grpc_status.h"
#include "common/rpc/memory_inbox.h"
#include "proto/expert/v1/expert.grpc.pb.h"

namespace banyan::trunk {
namespace {

absl::StatusOr<FileDescriptor> Borrow(const std::string& address, const std::string& inbox,
                                      const std::shared_ptr<grpc::ChannelCredentials>& credentials,
                                      absl::Time deadline) {
  ASSIGN_OR_RETURN(const MemoryName name, RandomMemoryName());
  ASSIGN_OR_RETURN(FileChannel channel, MakeFileChannel());
  RETURN_IF_ERROR(SendMemory(inbox, name, channel.far.get()));
  channel.far = FileDescriptor();  // so that its end is seen here
  const auto stub = expert::v1::Experts::NewStub(
      grpc::CreateCustomChannel(address, credentials, ExpertChannelArguments()));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(deadline));
  context.set_wait_for_ready(true);  // a busy host may miss gRPC's own time for connecting
  expert::v1::LendPoolRequest request;
  request.set_socket_name(name.data(), name.size());
  expert::v1::LendPoolResponse response;
  RETURN_IF_ERROR(FromGrpc(stub->LendPool(&context, request, &response)));
  // The file was sent before the answer: it is there.
  return ReceiveFile(channel.near.get(), deadline);
}

}  // namespace

absl::StatusOr<FileDescriptor> BorrowPoolFrom(
    const std::string& address, const std::shared_ptr<grpc::ChannelCredentials>& credentials,
    absl::Duration timeout) {
  const std::optional<std::string> inbox = MemoryInboxPath(address);
  if (!inbox.has_value()) {
    return FailedPreconditionF("{}: a pool is lent at unix: addresses only", Printable(address));
  }
  absl::StatusOr<FileDescriptor> file = Borrow(address, *inbox, credentials, absl::Now() + timeout);
  if (!file.ok()) return Annotate(file.status(), Printable(address));
  return file;
}

}  // namespace banyan::trunk
