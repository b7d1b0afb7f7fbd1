// A borrowed, read-only tensor: type, shape and bytes, row-major, little-endian. The data may lie
// at any byte address (safetensors promises no alignment): read it with memcpy or unaligned loads.
#pragma once

#include <cstddef>

#include "common/tensor/dtype.h"
#include "common/tensor/shape.h"

namespace banyan {

struct TensorView {
  DType dtype = DType::kF32;
  Shape shape;
  const std::byte* data = nullptr;

  size_t size_bytes() const {
    return static_cast<size_t>(shape.num_elements()) * DTypeSizeBytes(dtype);
  }
};

}  // namespace banyan
