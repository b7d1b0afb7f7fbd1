#include "common/parallel/page_reader.h"

#include <algorithm>
#include <vector>

#include "common/io/read_ahead.h"

namespace banyan {
namespace {

// Of one thread at a time: large enough that a disk streams, small enough that progress moves.
constexpr size_t kPartBytes = 8 << 20;
constexpr int64_t kPartsPerReport = 4;  // of a thread
constexpr size_t kPageBytes = 4096;

void Touch(std::span<const std::byte> part) {
  const auto read = [](const std::byte* p) { (void)*static_cast<const volatile std::byte*>(p); };
  for (size_t i = 0; i < part.size(); i += kPageBytes) read(part.data() + i);
  if (!part.empty()) read(&part.back());
}

}  // namespace

absl::Status ReadPages(std::span<const std::span<const std::byte>> ranges, WorkerPool& pool,
                       absl::FunctionRef<bool(uint64_t bytes_done)> progress) {
  std::vector<std::span<const std::byte>> parts;
  for (const std::span<const std::byte> range : ranges) {
    for (size_t first = 0; first < range.size(); first += kPartBytes) {
      parts.push_back(range.subspan(first, std::min(kPartBytes, range.size() - first)));
    }
  }
  // In the order of the files, whatever that of the tensors is.
  std::sort(parts.begin(), parts.end(),
            [](const auto& a, const auto& b) { return a.data() < b.data(); });
  const auto num_parts = static_cast<int64_t>(parts.size());
  const int64_t batch = kPartsPerReport * pool.num_threads();
  const auto part = [&](int64_t i) { return parts[static_cast<size_t>(i)]; };
  ReadAhead pages;
  uint64_t done = 0;
  for (int64_t first = 0; first < num_parts; first += batch) {
    if (!progress(done)) return absl::CancelledError("load stopped");
    const int64_t end = std::min(first + batch, num_parts);
    pool.ParallelFor(end - first, [&](int64_t i, int) {
      // The disk goes on with the next batch while this one's last thread ends.
      if (first + i + batch < num_parts) pages.Prefetch(part(first + i + batch));
      if (!pages.Populate(part(first + i))) Touch(part(first + i));
    });
    for (int64_t i = first; i < end; ++i) done += part(i).size();
  }
  return progress(done) ? absl::OkStatus() : absl::CancelledError("load stopped");
}

}  // namespace banyan
