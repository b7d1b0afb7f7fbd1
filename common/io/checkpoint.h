// A checkpoint directory: config files and safetensors shards, mapped read-only, indexed by tensor
// name.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/io/generated_tensor.h"
#include "common/io/mapped_file.h"
#include "common/tensor/tensor_view.h"

namespace banyan {

// Immutable after Open; thread-safe. Views point into the mapped files and live as long as this
// object. Tensor bytes lie at any alignment.
class Checkpoint {
 public:
  struct Entry {
    std::string name;
    TensorView view;
    int32_t file_idx;  // into files()
  };

  // Maps every shard of `directory` (those of model.safetensors.index.json, or model.safetensors)
  // and reads all headers; no tensor byte is touched. Names in the headers are authoritative; an
  // index that disagrees with them is an error. Errors name file, tensor, expected and found:
  // kNotFound (no directory, no config.json, no weights, a listed shard absent), kDataLoss (header
  // lies, holes, overlap, truncation, duplicates, index against headers, shards the index does not
  // list), kUnimplemented (unknown dtype).
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& directory);

  // The tensors of a model without its files: only config.json is read, into the fingerprint. Their
  // memory is reserved and holds zeros until Fill. kResourceExhausted when it cannot be reserved.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Generate(
      const std::string& directory, std::span<const GeneratedTensor> tensors);
  ~Checkpoint();
  Checkpoint(const Checkpoint&) = delete;
  Checkpoint& operator=(const Checkpoint&) = delete;

  // Before a part of a view is used: makes its values, if they are generated. Parts may be filled
  // on several threads if they do not overlap.
  void Fill(std::span<const std::byte> range) const;

  bool is_generated() const { return !generated_.empty(); }
  // How the values of a generated tensor are made; nullopt where they come from files.
  struct Generator {
    uint64_t seed = 0;
    float mean = 0;
    float deviation = 0;
  };
  std::optional<Generator> GeneratorOf(const TensorView& view) const;

  // nullptr when there is no such tensor.
  const Entry* Find(std::string_view name) const;

  // The tensor, which must have `shape` and one of `dtypes`. kNotFound or kDataLoss names tensor,
  // file, expected and found.
  absl::StatusOr<TensorView> Get(std::string_view name, const Shape& shape,
                                 std::span<const DType> dtypes) const;

  // All tensors in name order.
  std::span<const Entry> entries() const { return entries_; }
  std::span<const std::string> files() const { return file_names_; }  // base names, sorted
  const std::string& FileOf(const Entry& entry) const {
    return file_names_[static_cast<size_t>(entry.file_idx)];
  }
  const std::string& directory() const { return directory_; }

  // 32 hex digits over config.json's bytes and every shard's name, size and header bytes: equal on
  // hosts that hold equal copies, different after any change of a header.
  const std::string& fingerprint() const { return fingerprint_; }

  // Of the shards' names, sizes and modification times when they were opened: differs after any
  // rewrite of a file of this directory, and between copies of it.
  uint64_t Stamp() const;

  // Copies `range`, a part of a view, by pread: a failing disk or a cut file is a kDataLoss and not
  // a fault.
  absl::Status Read(std::span<const std::byte> range, std::span<std::byte> out) const;

  // Asks the kernel to read ahead the pages of a view (madvise); never fails.
  void Prefetch(const TensorView& view) const;

  // kDataLoss when a shard changed size or modification time since Open. For whoever copies tensors
  // out: before (a truncated mapping faults when touched) and after (the copy is of one version).
  absl::Status CheckFilesUnchanged() const;

 private:
  Checkpoint() = default;
  absl::Status CheckUniqueNames() const;

  std::string directory_;
  std::string fingerprint_;
  std::vector<std::string> file_names_;
  std::vector<MappedFile> files_;  // as file_names_
  std::vector<Entry> entries_;     // by name

  // Of generated tensors, in the order in which they lie in memory.
  struct Generated {
    const std::byte* begin = nullptr;
    size_t bytes = 0;
    Generator generator;
  };
  const Generated& GeneratedAt(const std::byte* data) const;
  void Generate(std::span<const std::byte> range, std::byte* out) const;
  std::vector<Generated> generated_;
  void* memory_ = nullptr;
  size_t memory_bytes_ = 0;
};

}  // namespace banyan
