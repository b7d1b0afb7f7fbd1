#include "common/rpc/shm_ring.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <new>
#include <utility>

#include "absl/strings/escaping.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/base/trace_context.h"

namespace banyan {
namespace {

constexpr uint32_t kVersion = 1;
constexpr size_t kPage = 4096;
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

// A count that the other side waits for, and whether it sleeps over it.
struct alignas(64) Doorbell {
  std::atomic<uint32_t> count{0};
  alignas(64) std::atomic<uint32_t> sleeps{0};
};
static_assert(std::atomic<uint32_t>::is_always_lock_free);

// The first page. Doorbells: `posted` by the caller, `answered` by the host.
struct Control {
  MemoryName name{};
  uint32_t version = kVersion;
  ShmRingGeometry geometry;
  Doorbell posted;
  Doorbell answered;
};
static_assert(sizeof(Control) <= kPage);

struct SlotHead {
  ForwardRequestHeader request;
  ForwardResponseHeader answer;
  uint32_t trace_bytes = 0;
  char trace[kMaxTraceBytes] = {};
};

constexpr size_t Pages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

// Offsets in a slot; all parts begin with a page.
struct SlotLayout {
  explicit SlotLayout(const ShmRingGeometry& g)
      : ids(Pages(sizeof(SlotHead))),
        weights(ids + Pages(size_t{g.max_rows} * g.max_top_k * sizeof(uint16_t))),
        rows(weights + Pages(size_t{g.max_rows} * g.max_top_k * sizeof(float))),
        sums(rows + Pages(size_t{g.max_rows} * g.hidden_size * sizeof(float))),
        bytes(sums + Pages(size_t{g.max_rows} * g.hidden_size * sizeof(float))) {}
  size_t ids, weights, rows, sums, bytes;
};

absl::Status CheckGeometry(const ShmRingGeometry& g) {
  constexpr uint32_t kMost = 1u << 20;
  const auto fits = [](uint32_t value) { return value >= 1 && value <= kMost; };
  if (fits(g.max_rows) && fits(g.max_top_k) && fits(g.hidden_size)) return absl::OkStatus();
  return InvalidArgumentF("a ring for {} rows of {} experts and {} values: expected 1 to {} each",
                          g.max_rows, g.max_top_k, g.hidden_size, kMost);
}

size_t RingBytes(const ShmRingGeometry& geometry) {
  return kPage + kShmRingSlots * SlotLayout(geometry).bytes;
}

absl::Status SystemError(const char* what) {
  return absl::ErrnoToStatus(errno, fmt::format("shared memory for expert calls: {}", what));
}

// `sleeps` is what is slept on, so that a wake-up between the last look and the sleep is not lost.
void WakeSleeper(std::atomic<uint32_t>& sleeps) {
  if (sleeps.exchange(0, std::memory_order_seq_cst) == 0) return;
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&sleeps), FUTEX_WAKE, INT_MAX, nullptr, nullptr,
          0);
}

void Ring(Doorbell& bell, uint32_t count) {
  bell.count.store(count, std::memory_order_seq_cst);
  WakeSleeper(bell.sleeps);
}

template <typename Done>
void SleepOn(Doorbell& bell, std::chrono::nanoseconds at_most, const Done& done) {
  bell.sleeps.store(1, std::memory_order_seq_cst);
  if (!done()) {
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(at_most);
    const timespec limit = {.tv_sec = static_cast<time_t>(seconds.count()),
                            .tv_nsec = static_cast<long>((at_most - seconds).count())};
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&bell.sleeps), FUTEX_WAIT, 1, &limit, nullptr,
            0);
  }
  bell.sleeps.store(0, std::memory_order_relaxed);
}

std::string OfferOf(const MemoryName& name) {
  return absl::BytesToHexString({reinterpret_cast<const char*>(name.data()), name.size()});
}

absl::StatusOr<MemoryName> ParseOffer(std::string_view text) {
  MemoryName name;
  if (text.size() == 2 * name.size() &&
      text.find_first_not_of("0123456789abcdef") == std::string_view::npos) {
    const std::string bytes = absl::HexStringToBytes(ToAbsl(text));
    std::memcpy(name.data(), bytes.data(), name.size());
    return name;
  }
  return InvalidArgumentF("{} \"{}\": expected 32 hex digits", kShmRingMetadataKey,
                          absl::CEscape(ToAbsl(text.substr(0, 100))));
}

}  // namespace

class ShmRingMemory {
 public:
  // Maps `file`, which has the bytes of `geometry`.
  static absl::StatusOr<std::unique_ptr<ShmRingMemory>> Map(int fd,
                                                            const ShmRingGeometry& geometry) {
    const size_t bytes = RingBytes(geometry);
    void* const at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) return SystemError("mmap");
    return std::unique_ptr<ShmRingMemory>(
        new ShmRingMemory(static_cast<std::byte*>(at), bytes, geometry));
  }
  ~ShmRingMemory() { munmap(base_, bytes_); }
  ShmRingMemory(const ShmRingMemory&) = delete;
  ShmRingMemory& operator=(const ShmRingMemory&) = delete;

  const ShmRingGeometry& geometry() const { return geometry_; }
  Control& control() { return *reinterpret_cast<Control*>(base_); }
  SlotHead& head(uint32_t call) { return *reinterpret_cast<SlotHead*>(slot(call)); }
  std::byte* ids(uint32_t call) { return slot(call) + layout_.ids; }
  std::byte* weights(uint32_t call) { return slot(call) + layout_.weights; }
  std::byte* rows(uint32_t call) { return slot(call) + layout_.rows; }
  std::byte* sums(uint32_t call) { return slot(call) + layout_.sums; }

 private:
  ShmRingMemory(std::byte* base, size_t bytes, const ShmRingGeometry& geometry)
      : base_(base), bytes_(bytes), geometry_(geometry), layout_(geometry) {}

  std::byte* slot(uint32_t call) { return base_ + kPage + call % kShmRingSlots * layout_.bytes; }

  std::byte* const base_;
  const size_t bytes_;
  const ShmRingGeometry geometry_;
  const SlotLayout layout_;
};

ShmRingCaller::ShmRingCaller(std::unique_ptr<ShmRingMemory> memory, FileDescriptor file)
    : memory_(std::move(memory)),
      file_(std::move(file)),
      offer_(OfferOf(memory_->control().name)) {}
ShmRingCaller::~ShmRingCaller() = default;

absl::StatusOr<std::unique_ptr<ShmRingCaller>> ShmRingCaller::Create(
    const ShmRingGeometry& geometry) {
  RETURN_IF_ERROR(CheckGeometry(geometry));
  FileDescriptor file(memfd_create("banyan-shm-ring", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!file.valid()) return SystemError("memfd_create");
  if (ftruncate(file.get(), static_cast<off_t>(RingBytes(geometry))) != 0) {
    return SystemError("ftruncate");
  }
  if (fcntl(file.get(), F_ADD_SEALS, kSeals) != 0) return SystemError("sealing");
  ASSIGN_OR_RETURN(std::unique_ptr<ShmRingMemory> memory, ShmRingMemory::Map(file.get(), geometry));
  auto* const control = new (&memory->control()) Control;
  control->geometry = geometry;
  ASSIGN_OR_RETURN(control->name, RandomMemoryName());
  for (uint32_t i = 0; i < kShmRingSlots; ++i) new (&memory->head(i)) SlotHead;
  return std::unique_ptr<ShmRingCaller>(new ShmRingCaller(std::move(memory), std::move(file)));
}

absl::Status ShmRingCaller::HandOver(const std::string& inbox) {
  CHECK(file_.valid());
  const FileDescriptor file = std::move(file_);
  return SendMemory(inbox, memory_->control().name, file.get());
}

std::byte* ShmRingCaller::Rows() {
  CHECK(CanPost());
  return memory_->rows(posted_);
}

void ShmRingCaller::Post(const ForwardRequestHeader& header, std::span<const uint16_t> expert_ids,
                         std::span<const float> weights, std::string_view trace) {
  CHECK(CanPost() && trace.size() <= kMaxTraceBytes);
  CHECK(header.num_rows <= memory_->geometry().max_rows);
  CHECK(expert_ids.size() == size_t{header.num_rows} * header.top_k);
  CHECK(header.top_k <= memory_->geometry().max_top_k && weights.size() == expert_ids.size());
  SlotHead& head = memory_->head(posted_);
  head.request = header;
  head.trace_bytes = static_cast<uint32_t>(trace.size());
  if (!trace.empty()) std::memcpy(head.trace, trace.data(), trace.size());
  std::memcpy(memory_->ids(posted_), expert_ids.data(), expert_ids.size_bytes());
  std::memcpy(memory_->weights(posted_), weights.data(), weights.size_bytes());
  requests_[posted_ % kShmRingSlots] = header;
  Ring(memory_->control().posted, ++posted_);
}

bool ShmRingCaller::HasAnswer() const {
  const uint32_t answered = memory_->control().answered.count.load(std::memory_order_acquire);
  return taken_ != posted_ && answered != taken_;
}

ForwardResponseView ShmRingCaller::TakeAnswer() {
  CHECK(HasAnswer());
  const ForwardRequestHeader& asked = requests_[taken_ % kShmRingSlots];
  const size_t bytes =
      size_t{asked.num_rows} * memory_->geometry().hidden_size * ReplyBytes(asked.flags);
  const ForwardResponseView view = {memory_->head(taken_).answer, {memory_->sums(taken_), bytes}};
  ++taken_;
  return view;
}

void ShmRingCaller::Wait(std::chrono::nanoseconds at_most) {
  SleepOn(memory_->control().answered, at_most, [this] { return HasAnswer(); });
}

ShmRingHost::ShmRingHost(std::unique_ptr<ShmRingMemory> memory) : memory_(std::move(memory)) {}
ShmRingHost::~ShmRingHost() = default;

absl::StatusOr<std::unique_ptr<ShmRingHost>> ShmRingHost::Open(MemoryInbox& inbox,
                                                               std::string_view offer,
                                                               const ShmRingGeometry& geometry) {
  RETURN_IF_ERROR(CheckGeometry(geometry));
  ASSIGN_OR_RETURN(const MemoryName name, ParseOffer(offer));
  const FileDescriptor file = inbox.Take(name);
  if (!file.valid()) {
    return StatusF(absl::StatusCode::kNotFound, "no memory came under the name of the offer");
  }
  // Of all files only memory has seals.
  const int seals = fcntl(file.get(), F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
    return FailedPreconditionF(
        "what came under the name of the offer could shrink while it is used");
  }
  struct stat stat = {};
  if (fstat(file.get(), &stat) != 0) return SystemError("fstat");
  if (static_cast<uint64_t>(stat.st_size) != RingBytes(geometry)) {
    return FailedPreconditionF("the memory of the offer has {} bytes, expected {}", stat.st_size,
                               RingBytes(geometry));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<ShmRingMemory> memory, ShmRingMemory::Map(file.get(), geometry));
  const Control& control = memory->control();
  if (control.name != name || control.version != kVersion || control.geometry != geometry) {
    return FailedPreconditionF("what came under the name of the offer is not its memory");
  }
  return std::unique_ptr<ShmRingHost>(new ShmRingHost(std::move(memory)));
}

bool ShmRingHost::HasRequest() const {
  return memory_->control().posted.count.load(std::memory_order_acquire) != taken_;
}

void ShmRingHost::Sleep() {
  SleepOn(memory_->control().posted, std::chrono::hours(1),
          [this] { return HasRequest() || closed(); });
}

void ShmRingHost::Close() {
  closed_.store(true, std::memory_order_seq_cst);
  WakeSleeper(memory_->control().posted.sleeps);
}

absl::StatusOr<ForwardRequestView> ShmRingHost::TakeRequest() {
  CHECK(HasRequest());
  const uint32_t call = taken_++;
  const ShmRingGeometry& geometry = memory_->geometry();
  const SlotHead& head = memory_->head(call);
  ForwardRequestView view;
  view.header = head.request;
  const ForwardRequestHeader& header = view.header;
  const size_t trace_bytes = head.trace_bytes;
  // Looked at once: what is checked is what is used.
  std::atomic_signal_fence(std::memory_order_seq_cst);
  if (header.num_rows == 0 || header.num_rows > geometry.max_rows) {
    return InvalidArgumentF("ForwardRequest num_rows {}: expected 1 to {}", header.num_rows,
                            geometry.max_rows);
  }
  if (header.top_k == 0 || header.top_k > geometry.max_top_k) {
    return InvalidArgumentF("ForwardRequest top_k {}: expected 1 to {}", header.top_k,
                            geometry.max_top_k);
  }
  RETURN_IF_ERROR(CheckForwardFlags(header.flags));
  if (trace_bytes > kMaxTraceBytes) {
    return InvalidArgumentF("ForwardRequest trace of {} bytes, expected at most {}", trace_bytes,
                            kMaxTraceBytes);
  }
  const size_t pairs = size_t{header.num_rows} * header.top_k;
  const size_t ids_bytes = pairs * sizeof(uint16_t);
  const size_t weights_bytes = pairs * sizeof(float);
  copy_.resize(std::max(copy_.size(), weights_bytes + ids_bytes + trace_bytes));
  std::byte* const weights = copy_.data();
  std::byte* const ids = weights + weights_bytes;
  std::byte* const trace = ids + ids_bytes;
  std::memcpy(weights, memory_->weights(call), weights_bytes);
  std::memcpy(ids, memory_->ids(call), ids_bytes);
  std::memcpy(trace, head.trace, trace_bytes);
  view.expert_ids = {ids, ids_bytes};
  view.weights = {weights, weights_bytes};
  view.activations = {memory_->rows(call), size_t{header.num_rows} * geometry.hidden_size *
                                               ActivationBytes(header.flags)};
  view.trace = {reinterpret_cast<const char*>(trace), trace_bytes};
  if (!view.trace.empty()) {
    RETURN_IF_ERROR(Annotate(ParseTrace(view.trace).status(), "ForwardRequest"));
  }
  return view;
}

std::byte* ShmRingHost::Sums() { return memory_->sums(taken_ - 1); }

void ShmRingHost::Answer(const ForwardResponseHeader& header) {
  memory_->head(taken_ - 1).answer = header;
  Ring(memory_->control().answered, taken_);
}

}  // namespace banyan
