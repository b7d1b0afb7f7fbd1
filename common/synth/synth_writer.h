// Writes a planned checkpoint with all threads of a pool.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/parallel/worker_pool.h"
#include "common/synth/synth_plan.h"

namespace banyan {

struct SynthProgress {
  enum class Phase : uint8_t { kWrite, kSync };
  Phase phase = Phase::kWrite;
  uint64_t bytes_done = 0;
  uint64_t bytes_total = 0;
};
// Called from the thread that asked; false ends the work with kCancelled.
using SynthProgressFn = absl::FunctionRef<bool(const SynthProgress&)>;

// The files of a tokenizer and a generation_config.json in `directory`: base names, those that are
// there. kNotFound when none of them is a tokenizer's vocabulary.
absl::StatusOr<std::vector<std::string>> TokenizerFiles(const std::string& directory);

// Writes the files and copies of `copies` (paths) into `directory`, which must be absent or empty:
// under another name beside it, DIRECTORY.partial, where config.json comes last, then renamed. A
// killed run leaves nothing that loads; its rest is removed by the next one. Memory is bounded by
// the plan and some megabytes a thread. kResourceExhausted: the disk has not the space, found
// before anything is written; kFailedPrecondition: the directory holds something, or another
// process writes it; kPermissionDenied, kCancelled. An error leaves no file.
absl::Status WriteSynth(const SynthPlan& plan, const std::vector<std::string>& copies,
                        const std::string& directory, WorkerPool& pool, SynthProgressFn progress);

}  // namespace banyan
