#include "common/io/mapping_fault.h"

#include <signal.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>

namespace banyan {
namespace {

constexpr size_t kMaxName = 512;  // of a longer path the end is kept

// A slot is free while `data` is null and taken while it is kWriting; the handler reads complete
// ones only.
struct Slot {
  std::atomic<const std::byte*> data{nullptr};
  size_t size = 0;
  std::array<char, kMaxName> path{};
};
std::array<Slot, 1024> slots;
const std::byte writing{};
const std::byte* const kWriting = &writing;

// In one piece: other threads may be writing lines as well.
void Say(const char* path) {
  constexpr char kBefore[] = "error: ";
  constexpr char kAfter[] = ": was truncated, or could not be read, while it was in use\n";
  char line[sizeof(kBefore) + kMaxName + sizeof(kAfter)];
  size_t length = 0;
  for (const char* part : {kBefore, path, kAfter}) {
    const size_t bytes = strlen(part);
    memcpy(line + length, part, bytes);
    length += bytes;
  }
  // Nothing can be done about a standard error that is closed.
  if (write(STDERR_FILENO, line, length) < 0) return;
}

// Calls only what is safe in a signal handler.
void OnFault(int signal, siginfo_t* info, void*) {
  const auto* const address = static_cast<const std::byte*>(info->si_addr);
  for (const Slot& slot : slots) {
    const std::byte* const data = slot.data.load(std::memory_order_acquire);
    if (data == nullptr || data == kWriting) continue;
    if (address < data || address >= data + slot.size) continue;
    Say(slot.path.data());
    _exit(1);
  }
  // The default action follows when the faulting instruction runs again.
  struct sigaction action = {};
  action.sa_handler = SIG_DFL;
  sigaction(signal, &action, nullptr);
}

}  // namespace

void NameMappingFaults() {
  struct sigaction action = {};
  action.sa_sigaction = OnFault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &action, nullptr);
}

void AddMapping(const std::byte* data, size_t size, const std::string& path) {
  for (Slot& slot : slots) {
    const std::byte* expected = nullptr;
    if (!slot.data.compare_exchange_strong(expected, kWriting)) continue;
    const size_t length = std::min(path.size(), kMaxName - 1);
    path.copy(slot.path.data(), length, path.size() - length);
    slot.path[length] = '\0';
    slot.size = size;
    slot.data.store(data, std::memory_order_release);
    return;
  }
}

void RemoveMapping(const std::byte* data) {
  for (Slot& slot : slots) {
    if (slot.data.load(std::memory_order_relaxed) != data) continue;
    slot.data.store(nullptr, std::memory_order_release);
    return;
  }
}

}  // namespace banyan
