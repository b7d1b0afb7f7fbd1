#include "common/tokenizer/bpe_model.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <queue>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/strings.h"

namespace banyan {
namespace {

constexpr uint64_t kEmpty = ~uint64_t{0};
// Up to here scanning an array for the lowest rank beats a heap (measured on English and code).
constexpr size_t kShortPiece = 48;

uint64_t PairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
}

size_t PairHash(uint64_t pair) {
  const uint64_t mixed = (pair ^ pair >> 29) * 0x9E3779B97F4A7C15u;
  return mixed ^ mixed >> 32;
}

uint64_t BytesHash(std::string_view bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

// Printable form of raw token bytes, for messages.
std::string Show(std::string_view bytes) {
  std::string out;
  for (const char c : bytes.substr(0, 40)) {
    if (c >= 0x20 && c < 0x7F) {
      out += c;
    } else {
      out += fmt::format("\\x{:02x}", static_cast<uint8_t>(c));
    }
  }
  return out;
}

}  // namespace

absl::StatusOr<std::unique_ptr<BpeModel>> BpeModel::Create(const TokenizerJson& json) {
  std::unique_ptr<BpeModel> model(new BpeModel());
  RETURN_IF_ERROR(model->AddVocab(json));
  RETURN_IF_ERROR(model->AddMerges(json));
  return model;
}

absl::Status BpeModel::AddVocab(const TokenizerJson& json) {
  const size_t num_entries = json.vocab.size();
  int32_t size = 0;
  for (const int32_t id : json.vocab_ids) size = std::max(size, id + 1);
  std::vector<int32_t> entry_of(size, -1);
  size_t num_bytes = 0;
  for (size_t i = 0; i < num_entries; ++i) {
    int32_t& entry = entry_of[json.vocab_ids[i]];
    if (entry >= 0) {
      return InvalidArgumentF("model.vocab: id {} given to both \"{}\" and \"{}\"",
                              json.vocab_ids[i], Show(json.vocab[entry]), Show(json.vocab[i]));
    }
    entry = static_cast<int32_t>(i);
    num_bytes += json.vocab[i].size();
  }
  if (num_bytes > UINT32_MAX) return InvalidArgumentF("model.vocab: more than 4 GiB of text");
  bytes_.reserve(num_bytes);
  offsets_.reserve(size + 1);
  offsets_.push_back(0);
  for (int32_t id = 0; id < size; ++id) {
    if (entry_of[id] >= 0) {
      const std::string_view entry = json.vocab[entry_of[id]];
      bytes_.append(entry);
      max_bytes_ = std::max(max_bytes_, entry.size());
    }
    offsets_.push_back(static_cast<uint32_t>(bytes_.size()));
  }
  by_bytes_.assign(std::bit_ceil(std::max<size_t>(16, num_entries * 2)), {0, -1});
  for (int32_t id = 0; id < size; ++id) {
    if (entry_of[id] < 0) continue;
    const std::string_view entry = Bytes(id);
    if (entry.empty()) return InvalidArgumentF("model.vocab: the entry of id {} is empty", id);
    if (const int32_t other = Find(entry); other >= 0) {
      return InvalidArgumentF("model.vocab: \"{}\" has ids {} and {}", Show(entry), other, id);
    }
    const uint64_t hash = BytesHash(entry);
    size_t slot = hash & (by_bytes_.size() - 1);
    while (by_bytes_[slot].id >= 0) slot = (slot + 1) & (by_bytes_.size() - 1);
    by_bytes_[slot] = {static_cast<uint32_t>(hash >> 32), id};
  }
  for (int32_t byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    byte_ids_[byte] = Find(std::string_view(&c, 1));
    if (byte_ids_[byte] < 0) {
      return InvalidArgumentF("model.vocab: no entry for byte 0x{:02X}, expected all 256", byte);
    }
  }
  whole_ = std::make_unique<std::atomic<Whole>[]>(size);
  return absl::OkStatus();
}

absl::Status BpeModel::AddMerges(const TokenizerJson& json) {
  const size_t num_merges = json.merges.size() / 2;
  if (num_merges >= static_cast<size_t>(kNoRank)) {
    return InvalidArgumentF("model.merges: {} entries", num_merges);
  }
  merges_.assign(std::bit_ceil(std::max<size_t>(16, num_merges * 3 / 2)), {kEmpty, 0, 0});
  std::string merged;
  for (size_t rank = 0; rank < num_merges; ++rank) {
    const std::string_view left = json.merges[2 * rank];
    const std::string_view right = json.merges[2 * rank + 1];
    merged.assign(left).append(right);
    int32_t ids[3];
    const std::string_view parts[3] = {left, right, merged};
    for (int32_t i = 0; i < 3; ++i) {
      ids[i] = Find(parts[i]);
      if (ids[i] < 0) {
        return InvalidArgumentF("model.merges[{}]: \"{}\" is not in the vocabulary", rank,
                                Show(parts[i]));
      }
    }
    if (FindMerge(ids[0], ids[1]) != nullptr) {
      return InvalidArgumentF("model.merges[{}]: \"{}\" and \"{}\" were merged before", rank,
                              Show(left), Show(right));
    }
    const uint64_t pair = PairKey(ids[0], ids[1]);
    size_t slot = PairHash(pair) & (merges_.size() - 1);
    while (merges_[slot].pair != kEmpty) slot = (slot + 1) & (merges_.size() - 1);
    merges_[slot] = {pair, static_cast<int32_t>(rank), ids[2]};
  }
  return absl::OkStatus();
}

int32_t BpeModel::Find(std::string_view bytes) const {
  const uint64_t hash = BytesHash(bytes);
  const auto check = static_cast<uint32_t>(hash >> 32);
  for (size_t slot = hash & (by_bytes_.size() - 1);; slot = (slot + 1) & (by_bytes_.size() - 1)) {
    const BytesSlot& here = by_bytes_[slot];
    if (here.id < 0) return -1;
    if (here.hash == check && Bytes(here.id) == bytes) return here.id;
  }
}

std::string_view BpeModel::Bytes(int32_t id) const {
  if (id < 0 || id >= size()) return {};
  return std::string_view(bytes_).substr(offsets_[id], offsets_[id + 1] - offsets_[id]);
}

const BpeModel::Merge* BpeModel::FindMerge(int32_t left, int32_t right) const {
  const uint64_t pair = PairKey(left, right);
  for (size_t slot = PairHash(pair) & (merges_.size() - 1);;
       slot = (slot + 1) & (merges_.size() - 1)) {
    if (merges_[slot].pair == pair) return &merges_[slot];
    if (merges_[slot].pair == kEmpty) return nullptr;
  }
}

void BpeModel::Encode(std::string_view piece, std::vector<int32_t>& ids) const {
  if (piece.size() == 1) {
    ids.push_back(byte_ids_[static_cast<uint8_t>(piece[0])]);
    return;
  }
  const int32_t id = piece.size() <= max_bytes_ ? Find(piece) : -1;
  Whole whole = Whole::kNo;
  if (id >= 0) {
    whole = whole_[id].load(std::memory_order_relaxed);
    if (whole == Whole::kYes) {
      ids.push_back(id);
      return;
    }
  }
  const size_t begin = ids.size();
  if (piece.size() <= kShortPiece) {
    MergeShort(piece, ids);
  } else {
    MergeLong(piece, ids);
  }
  if (whole == Whole::kUnknown) {
    const bool yes = ids.size() == begin + 1 && ids[begin] == id;
    whole_[id].store(yes ? Whole::kYes : Whole::kNo, std::memory_order_relaxed);
  }
}

void BpeModel::MergeShort(std::string_view piece, std::vector<int32_t>& ids) const {
  int32_t symbols[kShortPiece];
  int32_t ranks[kShortPiece];   // of symbols i and i + 1
  int32_t merged[kShortPiece];  // what they become
  auto size = static_cast<int32_t>(piece.size());
  const auto look_up = [&](int32_t i) {
    const Merge* merge = FindMerge(symbols[i], symbols[i + 1]);
    ranks[i] = merge == nullptr ? kNoRank : merge->rank;
    merged[i] = merge == nullptr ? -1 : merge->id;
  };
  for (int32_t i = 0; i < size; ++i) symbols[i] = byte_ids_[static_cast<uint8_t>(piece[i])];
  for (int32_t i = 0; i + 1 < size; ++i) look_up(i);
  while (size > 1) {
    int32_t best = 0;
    for (int32_t i = 1; i + 1 < size; ++i) {
      if (ranks[i] < ranks[best]) best = i;
    }
    if (ranks[best] == kNoRank) break;
    symbols[best] = merged[best];
    --size;
    for (int32_t i = best + 1; i < size; ++i) symbols[i] = symbols[i + 1];
    for (int32_t i = best; i + 1 < size; ++i) {
      ranks[i] = ranks[i + 1];
      merged[i] = merged[i + 1];
    }
    if (best > 0) look_up(best - 1);
    if (best + 1 < size) look_up(best);
  }
  ids.insert(ids.end(), symbols, symbols + size);
}

void BpeModel::MergeLong(std::string_view piece, std::vector<int32_t>& ids) const {
  CHECK(piece.size() < static_cast<size_t>(INT32_MAX));
  const auto size = static_cast<int32_t>(piece.size());
  struct Symbol {
    int32_t id;  // -1 once merged into the one before
    int32_t previous;
    int32_t next;
  };
  struct Candidate {
    int32_t rank;
    int32_t position;
    int32_t left;  // ids when it was found: stale if they have changed
    int32_t right;
    int32_t id;
    bool operator<(const Candidate& other) const {  // the queue's top is the greatest
      return rank != other.rank ? rank > other.rank : position > other.position;
    }
  };
  std::vector<Symbol> symbols(size);
  for (int32_t i = 0; i < size; ++i) {
    symbols[i] = {byte_ids_[static_cast<uint8_t>(piece[i])], i - 1, i + 1 < size ? i + 1 : -1};
  }
  std::vector<Candidate> start;
  std::priority_queue<Candidate> queue;
  const auto candidate = [&](int32_t i, Candidate& out) {
    if (i < 0 || symbols[i].next < 0) return false;
    const int32_t right = symbols[symbols[i].next].id;
    const Merge* merge = FindMerge(symbols[i].id, right);
    if (merge == nullptr) return false;
    out = {merge->rank, i, symbols[i].id, right, merge->id};
    return true;
  };
  Candidate found;
  for (int32_t i = 0; i < size; ++i) {
    if (candidate(i, found)) start.push_back(found);
  }
  queue = std::priority_queue<Candidate>(std::less<Candidate>(), std::move(start));
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Symbol& left = symbols[top.position];
    if (left.id != top.left || left.next < 0 || symbols[left.next].id != top.right) continue;
    Symbol& right = symbols[left.next];
    left.id = top.id;
    right.id = -1;
    left.next = right.next;
    if (left.next >= 0) symbols[left.next].previous = top.position;
    if (candidate(left.previous, found)) queue.push(found);
    if (candidate(top.position, found)) queue.push(found);
  }
  for (int32_t i = 0; i >= 0; i = symbols[i].next) ids.push_back(symbols[i].id);
}

}  // namespace banyan
