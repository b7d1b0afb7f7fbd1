// A device's part of a tensor (common/plan/tensor_parallel.h).
#pragma once

#include <cstddef>
#include <memory>

#include "common/plan/tensor_parallel.h"
#include "common/tensor/tensor_view.h"

namespace banyan::trunk {

struct SlicedTensor {
  TensorView view;
  std::unique_ptr<std::byte[]> bytes;  // what it looks at, if that was copied
};

// The slice, where it lies if it lies in one piece and `copy` does not ask for a copy.
SlicedTensor SliceTensor(const TensorView& tensor, const TensorSlice& slice, bool copy = false);

}  // namespace banyan::trunk
