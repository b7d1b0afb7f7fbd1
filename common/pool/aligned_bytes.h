// A buffer of a thread that converts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "common/base/check.h"

namespace banyan {

// 64-byte aligned, not initialised.
class AlignedBytes {
 public:
  explicit AlignedBytes(int64_t size)
      : data_(static_cast<std::byte*>(
                  std::aligned_alloc(64, static_cast<size_t>((size + 63) / 64 * 64))),
              &std::free) {
    CHECK(data_ != nullptr);
  }
  std::byte* data() const { return data_.get(); }

 private:
  std::unique_ptr<std::byte, void (*)(void*)> data_;
};

}  // namespace banyan
