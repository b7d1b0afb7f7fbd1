// A device's part of a tensor (common/plan/tensor_parallel.h).
#pragma once

#include <cstddef>
#include <memory>
#include <optional>

#include "common/io/trunk_pack.h"
#include "common/plan/tensor_parallel.h"
#include "common/tensor/tensor_view.h"

namespace banyan::trunk {

struct SlicedTensor {
  TensorView view;
  std::unique_ptr<std::byte[]> bytes;  // what it looks at, if that was copied
};

// The slice, where it lies if it lies in one piece and `copy` does not ask for a copy.
SlicedTensor SliceTensor(const TensorView& tensor, const TensorSlice& slice, bool copy = false);

// A part of a pack's 8-bit codes with the scales of its groups.
struct SlicedCodes {
  SlicedTensor codes;   // [rows, cols]
  SlicedTensor scales;  // f32 [rows, groups of cols]
};
// Likewise. nullopt: the columns begin in the middle of a group and end in another one, so that
// their groups, counted from the first of them, are not the pack's.
std::optional<SlicedCodes> SliceCodes(const TrunkPack::Matrix& matrix, const TensorSlice& slice);

}  // namespace banyan::trunk
