// How the trunk is cut for several devices that compute it together: each has some of the heads of
// every mixer, a slice of the width of every FFN that is not a routed expert, and some rows of the
// vocabulary. Norms, router and the shared expert's gate are everywhere. What each device then
// leaves of a mixer or an FFN is a partial sum of the whole [rows, hidden_size].
//
// Key and value heads that are fewer than the devices are on several of them; so are key heads of
// the DeltaNet, whose value heads are divided.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "common/config/model_config.h"
#include "common/tensor/shape.h"

namespace banyan {

// One of `size` devices.
struct TensorRank {
  int32_t rank = 0;
  int32_t size = 1;
};

inline constexpr char kTensorParallelHelp[] =
    "Devices that share the trunk: 1, 2, 4 or 8 GPUs of this machine, or as many parts of its CPUs";

// kInvalidArgument, naming the flag: not 1, 2, 4 or 8.
absl::Status CheckTensorParallelSize(int32_t size);
// Also kInvalidArgument: a number of heads, a width or a vocabulary that `size` does not divide,
// with both numbers.
absl::Status CheckTensorParallel(const ModelConfig& config, int32_t size);

// The model as one of `size` devices has it: its heads, widths and vocabulary. Only for a size that
// CheckTensorParallel takes.
ModelConfig RankConfig(const ModelConfig& config, int32_t size);

struct IndexRange {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t size() const { return end - begin; }
  bool operator==(const IndexRange& other) const {
    return begin == other.begin && end == other.end;
  }
};

// What a device has of a tensor: some of its rows (of the first dimension), one after the other,
// and of a matrix some columns.
struct TensorSlice {
  std::vector<IndexRange> rows;  // neither empty nor adjacent
  IndexRange cols;               // of the other dimensions together

  int64_t num_rows() const;
  int64_t num_elements() const { return num_rows() * cols.size(); }
  // Whether it lies in one piece where the tensor lies.
  bool IsContiguous(const Shape& shape) const;
};

// `name` and `shape` as in TrunkTensors (common/config/tensor_inventory.h).
TensorSlice SliceOf(std::string_view name, const Shape& shape, const ModelConfig& config,
                    const TensorRank& rank);

}  // namespace banyan
