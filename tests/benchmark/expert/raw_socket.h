// The floor under an expert call: the same bytes over a plain socket, both ends spinning.
#pragma once

#include <cstddef>
#include <string>

namespace banyan {

// Serves one connection after another on `listen` ("127.0.0.1:0" or "unix:/path") until the process
// ends: reads request_bytes, writes reply_bytes. Prints "listening ADDRESS" when ready.
[[noreturn]] void ServeRaw(const std::string& listen);

class RawClient {
 public:
  RawClient(const std::string& address, size_t request_bytes, size_t reply_bytes);
  ~RawClient();
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;
  void Call();

 private:
  int fd_ = -1;
  std::string request_;
  std::string reply_;
};

}  // namespace banyan
