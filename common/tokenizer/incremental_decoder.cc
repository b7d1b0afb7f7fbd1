#include "common/tokenizer/incremental_decoder.h"

#include "common/tokenizer/utf8.h"

namespace banyan {

std::string IncrementalDecoder::Add(int32_t id) {
  std::string text;
  if (skip_special_ && tokenizer_.IsSpecial(id)) return text;
  pending_.append(tokenizer_.TokenBytes(id));
  const size_t consumed = AppendSanitized(pending_, /*keep_incomplete=*/true, text);
  pending_.erase(0, consumed);
  return text;
}

std::string IncrementalDecoder::Finish() {
  std::string text;
  AppendSanitized(pending_, /*keep_incomplete=*/false, text);
  pending_.clear();
  return text;
}

}  // namespace banyan
