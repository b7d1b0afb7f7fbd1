// Turns tokens into text one at a time and never emits half a character.
#pragma once

#include <cstdint>
#include <string>

#include "common/tokenizer/bpe_tokenizer.h"

namespace banyan {

// Thread-compatible; borrows the tokenizer. Concatenating everything Add and Finish return equals
// BpeTokenizer::Decode of the same ids.
class IncrementalDecoder {
 public:
  IncrementalDecoder(const BpeTokenizer& tokenizer, bool skip_special)
      : tokenizer_(tokenizer), skip_special_(skip_special) {}

  // Text completed by this token: whole UTF-8 characters, possibly none. At most 3 bytes are held
  // back.
  std::string Add(int32_t id);
  // The remainder: U+FFFD where a character never became complete.
  std::string Finish();

 private:
  const BpeTokenizer& tokenizer_;
  const bool skip_special_;
  std::string pending_;
};

}  // namespace banyan
