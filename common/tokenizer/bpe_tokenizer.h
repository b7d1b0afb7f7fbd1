// Byte-level BPE as tokenizer.json describes it (Qwen family): added tokens, NFC, pre-tokeniser,
// merges. Source: tokenizer spec sections 1-4.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace banyan {

// Which added tokens are recognised in a text.
enum class AddedTokens : uint8_t {
  kAll,       // all of them: the raw path and a template's own text
  kOrdinary,  // only those not marked special: text typed by users never becomes a control token
};

// A part of a text and which added tokens count in it.
struct TextSpan {
  std::string_view text;
  AddedTokens added = AddedTokens::kAll;
};

// Immutable after Create; thread-safe.
class BpeTokenizer {
 public:
  // `json` is the content of tokenizer.json, `source` names it in messages. kInvalidArgument or
  // kUnimplemented name the field, the entry and what was expected.
  static absl::StatusOr<std::unique_ptr<BpeTokenizer>> Create(std::string_view json,
                                                              std::string_view source);
  // Reads DIRECTORY/tokenizer.json; kNotFound when there is none.
  static absl::StatusOr<std::unique_ptr<BpeTokenizer>> Load(const std::string& directory);

  virtual ~BpeTokenizer() = default;

  // Appends the ids of `text`; invalid UTF-8 is read as U+FFFD. Never fails.
  virtual void Encode(std::string_view text, AddedTokens added,
                      std::vector<int32_t>& ids) const = 0;

  // Appends the ids of the concatenation of `spans`: borders of spans split nothing, but a token
  // marked special is recognised only where all of it lies in kAll spans.
  virtual void EncodeSpans(std::span<const TextSpan> spans, std::vector<int32_t>& ids) const = 0;

  // The bytes of one token ("" for an id that is not in the vocabulary). A token may hold part of a
  // character.
  virtual std::string_view TokenBytes(int32_t id) const = 0;
  virtual bool IsSpecial(int32_t id) const = 0;
  virtual bool IsAdded(int32_t id) const = 0;
  // One past the highest id; ids from here on are never sampled.
  virtual int32_t vocab_size() const = 0;
  // -1 when `content` is no added token.
  virtual int32_t AddedTokenId(std::string_view content) const = 0;

  // Whole-text decoding with U+FFFD for invalid bytes. Ids outside the vocabulary contribute
  // nothing.
  std::string Decode(std::span<const int32_t> ids, bool skip_special) const;
};

}  // namespace banyan
