// tokenizer.json as untrusted bytes. Input: a JSON file, a zero byte, then a text. What loads must
// encode any text without a fault, decode what it encoded, and stream the same text that it
// decodes.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/check.h"
#include "common/tokenizer/bpe_tokenizer.h"
#include "common/tokenizer/incremental_decoder.h"
#include "common/tokenizer/utf8.h"

namespace {

using banyan::AddedTokens;
using banyan::BpeTokenizer;

void Exercise(const BpeTokenizer& tokenizer, std::string_view text) {
  for (const AddedTokens added : {AddedTokens::kAll, AddedTokens::kOrdinary}) {
    std::vector<int32_t> ids;
    tokenizer.Encode(text, added, ids);
    std::string streamed;
    banyan::IncrementalDecoder decoder(tokenizer, /*skip_special=*/false);
    for (const int32_t id : ids) {
      CHECK(id >= 0 && id < tokenizer.vocab_size());
      CHECK(added == AddedTokens::kAll || !tokenizer.IsSpecial(id));
      const std::string part = decoder.Add(id);
      CHECK(banyan::IsValidUtf8(part));
      streamed += part;
    }
    streamed += decoder.Finish();
    CHECK(streamed == tokenizer.Decode(ids, /*skip_special=*/false));
    // NFC may change the text, but never twice; ASCII is its own normal form.
    if (banyan::IsAscii(text)) CHECK(streamed == text);
    std::vector<int32_t> again;
    tokenizer.Encode(text, added, again);
    CHECK(again == ids);
  }
  // A border between spans of one kind is no border.
  const size_t half = text.size() / 2;
  if (banyan::IsAscii(text)) {
    const banyan::TextSpan spans[] = {{text.substr(0, half), AddedTokens::kAll},
                                      {text.substr(half), AddedTokens::kAll}};
    std::vector<int32_t> whole;
    std::vector<int32_t> parts;
    tokenizer.Encode(text, AddedTokens::kAll, whole);
    tokenizer.EncodeSpans(spans, parts);
    CHECK(whole == parts);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t zero = input.find('\0');
  const std::string_view json = input.substr(0, zero);
  const std::string_view text = zero == std::string_view::npos
                                    ? std::string_view("Hi, it's 20\xC2\xB0 <|end|>\n")
                                    : input.substr(zero + 1);
  const auto tokenizer = BpeTokenizer::Create(json, "fuzz");
  if (tokenizer.ok()) Exercise(**tokenizer, text);
  return 0;
}
