// Byte-pair encoding of one pre-tokenised piece: merges by rank, leftmost first on ties.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/tokenizer/tokenizer_json.h"

namespace banyan {

// Immutable after Create as far as callers can tell; thread-safe without locks.
//
// A piece that is a vocabulary entry usually merges into that entry, but need not (an entry can be
// out of reach of the merges). The first time an entry is met its merges are run; whether they end
// in the entry is remembered in one atomic byte per id, so that from then on such a piece costs one
// hash look-up. The answer depends on the entry alone, hence racing threads write the same value.
class BpeModel {
 public:
  // Borrows nothing. kInvalidArgument: a byte without an entry, an id twice, a merge whose parts or
  // result are not in the vocabulary, a merge twice.
  static absl::StatusOr<std::unique_ptr<BpeModel>> Create(const TokenizerJson& json);

  // Appends the ids of `piece`, which is any non-empty byte string. O(n log n).
  void Encode(std::string_view piece, std::vector<int32_t>& ids) const;

  // The id of the entry that spells exactly `bytes`; -1 when there is none.
  int32_t Find(std::string_view bytes) const;
  // "" for an id without an entry.
  std::string_view Bytes(int32_t id) const;
  // One past the highest id.
  int32_t size() const { return static_cast<int32_t>(offsets_.size()) - 1; }

 private:
  static constexpr int32_t kNoRank = INT32_MAX;
  struct Merge {
    uint64_t pair;  // left id << 32 | right id; kEmpty where the slot is free
    int32_t rank;
    int32_t id;
  };
  struct BytesSlot {
    uint32_t hash;
    int32_t id;  // -1 where the slot is free
  };
  enum class Whole : uint8_t { kUnknown, kYes, kNo };

  BpeModel() = default;
  absl::Status AddVocab(const TokenizerJson& json);
  absl::Status AddMerges(const TokenizerJson& json);
  // nullptr when the two never merge.
  const Merge* FindMerge(int32_t left, int32_t right) const;
  void MergeShort(std::string_view piece, std::vector<int32_t>& ids) const;
  void MergeLong(std::string_view piece, std::vector<int32_t>& ids) const;

  std::string bytes_;              // of all entries, in id order
  std::vector<uint32_t> offsets_;  // [size + 1] into bytes_
  size_t max_bytes_ = 0;           // of one entry
  int32_t byte_ids_[256];
  std::vector<BytesSlot> by_bytes_;  // open addressing, a power of two
  std::vector<Merge> merges_;        // open addressing, a power of two
  std::unique_ptr<std::atomic<Whole>[]> whole_;
};

}  // namespace banyan
