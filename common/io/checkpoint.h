// A checkpoint directory: config files and safetensors shards, mapped read-only, indexed by tensor
// name.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/tensor/tensor_view.h"

namespace banyan {

// Immutable after Open; thread-safe. Views point into the mapped files and live as long as this
// object.
class Checkpoint {
 public:
  struct Entry {
    std::string name;
    TensorView view;
    int32_t file_idx;  // into files()
  };

  // Maps every shard of `directory` (the sharded index's files, or model.safetensors) and reads all
  // headers; no tensor byte is touched. Errors name file, tensor, expected and found: kNotFound (no
  // directory, no weights, a listed shard absent), kDataLoss (header lies, holes, overlap,
  // truncation, duplicates, index against headers), kUnimplemented (unknown dtype).
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& directory);

  virtual ~Checkpoint() = default;

  // nullptr when there is no such tensor.
  virtual const Entry* Find(std::string_view name) const = 0;

  // The tensor, which must have `shape` and one of `dtypes`. kNotFound or kDataLoss names tensor,
  // file, expected and found.
  virtual absl::StatusOr<TensorView> Get(std::string_view name, const Shape& shape,
                                         std::span<const DType> dtypes) const = 0;

  // All tensors in name order.
  virtual std::span<const Entry> entries() const = 0;
  virtual std::span<const std::string> files() const = 0;  // base names
  virtual const std::string& directory() const = 0;

  // 32 hex digits over config.json's bytes and every shard's header bytes (names, shapes, offsets,
  // file size): equal on hosts that hold equal copies, different after any change of a header.
  virtual const std::string& fingerprint() const = 0;

  // Asks the kernel to read ahead the pages of a view (madvise); never fails.
  virtual void Prefetch(const TensorView& view) const = 0;
};

}  // namespace banyan
