// From how many rows on a step runs as two halves, and how many rows steps of prompts have on a GPU
// (docs/adr/two-halves.md).
#pragma once

#include <cstdint>
#include <string_view>

#include "absl/status/statusor.h"

namespace banyan {

// Rows of a half in the steps that a trunk on a GPU plans for where memory allows.
inline constexpr int32_t kHalfRows = 2048;

// With fewer, reading the experts' weights once more may take longer than what the halves hide,
// which is more where rows go over a socket than where they go through shared memory. There 1,024
// rows lost 7 % and 2,048 won 16 %; here 2,048 lost 2 to 16 % and 4,096 won 6 to 13 %
// (docs/performance.md).
inline constexpr int32_t kLeastHalvedRows = 2048;
inline constexpr int32_t kLeastHalvedRowsInMemory = 3072;

// --prefill_halves: "auto" (one of the two on a GPU, else 0), "off" (0), or the rows from which on
// steps run as two halves, 2 to 65536. in_memory: all experts' calls go through shared memory.
// kInvalidArgument names the flag.
absl::StatusOr<int32_t> ParsePrefillHalves(std::string_view text, bool on_gpu, bool in_memory);

inline constexpr char kPrefillHalvesHelp[] =
    "From how many rows on a step runs as two halves, one on the trunk while the experts have the "
    "other: a number, off, or auto (on a GPU 3072 where all experts are on this machine, else "
    "2048; off on the CPU, whose cores may be the experts')";

inline constexpr char kMaxBatchTokensHelp[] =
    "Rows of one step; 0: 512, on a GPU 4096 with --prompt_experts, 4159 with halves, else 2111, "
    "while somebody decodes 512, or fewer where memory is short";

}  // namespace banyan
