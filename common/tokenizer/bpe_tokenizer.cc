#include "common/tokenizer/bpe_tokenizer.h"

#include <algorithm>
#include <utility>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/tokenizer/added_tokens.h"
#include "common/tokenizer/bpe_model.h"
#include "common/tokenizer/file_text.h"
#include "common/tokenizer/pre_tokenizer.h"
#include "common/tokenizer/tokenizer_json.h"
#include "common/tokenizer/unicode_tables.h"
#include "common/tokenizer/utf8.h"

namespace banyan {
namespace {

class BpeTokenizerImpl final : public BpeTokenizer {
 public:
  BpeTokenizerImpl(std::unique_ptr<BpeModel> model, bool normalize_nfc)
      : model_(std::move(model)), normalize_nfc_(normalize_nfc), vocab_size_(model_->size()) {}

  absl::Status AddTokens(std::vector<AddedTokenEntry> entries) {
    std::sort(entries.begin(), entries.end(),
              [](const auto& a, const auto& b) { return a.id < b.id; });
    for (AddedTokenEntry& entry : entries) {
      const std::string_view same_id = model_->Bytes(entry.id);
      const int32_t same_content = model_->Find(entry.content);
      if (!same_id.empty() && same_content != entry.id) {
        return InvalidArgumentF(
            "added_tokens: id {} of \"{}\" belongs to another entry of the "
            "vocabulary",
            entry.id, entry.content);
      }
      if (same_content >= 0 && same_content != entry.id) {
        return InvalidArgumentF("added_tokens: \"{}\" has id {}, but id {} in the vocabulary",
                                entry.content, entry.id, same_content);
      }
      if (const int32_t other = matcher_.IdOf(entry.content); other >= 0) {
        return InvalidArgumentF("added_tokens: \"{}\" has ids {} and {}", entry.content, other,
                                entry.id);
      }
      if (!added_.empty() && added_.back().id == entry.id) {
        return InvalidArgumentF("added_tokens: id {} given to both \"{}\" and \"{}\"", entry.id,
                                added_.back().content, entry.content);
      }
      matcher_.Add(entry.content, entry.id, entry.special);
      vocab_size_ = std::max(vocab_size_, entry.id + 1);
      added_.push_back(std::move(entry));
    }
    return absl::OkStatus();
  }

  void Encode(std::string_view text, AddedTokens added, std::vector<int32_t>& ids) const override {
    const TextSpan span{text, added};
    EncodeSpans({&span, 1}, ids);
  }

  void EncodeSpans(std::span<const TextSpan> spans, std::vector<int32_t>& ids) const override {
    // One text of valid UTF-8, and where in it special tokens count.
    std::string owned;
    std::string_view text;
    std::vector<AddedTokenMatcher::Range> trusted;
    const auto trust = [&](size_t begin, size_t end) {
      if (!trusted.empty() && trusted.back().end == begin) {
        trusted.back().end = end;
      } else {
        trusted.push_back({begin, end});
      }
    };
    if (spans.size() == 1 && IsValidUtf8(spans[0].text)) {
      text = spans[0].text;
      if (spans[0].added == AddedTokens::kAll) trust(0, text.size());
    } else {
      for (const TextSpan& span : spans) {
        const size_t begin = owned.size();
        AppendSanitized(span.text, /*keep_incomplete=*/false, owned);
        if (span.added == AddedTokens::kAll) trust(begin, owned.size());
      }
      text = owned;
    }
    std::string buffer;
    size_t range_idx = 0;
    for (size_t pos = 0; pos < text.size();) {
      const AddedTokenMatcher::Match match = matcher_.Find(text, pos, trusted, range_idx);
      EncodeOrdinary(text.substr(pos, match.begin - pos), buffer, ids);
      if (match.id < 0) break;
      ids.push_back(match.id);
      pos = match.begin + match.length;
    }
  }

  std::string_view TokenBytes(int32_t id) const override {
    if (const AddedTokenEntry* entry = FindAdded(id)) return entry->content;
    return model_->Bytes(id);
  }

  bool IsSpecial(int32_t id) const override {
    const AddedTokenEntry* entry = FindAdded(id);
    return entry != nullptr && entry->special;
  }

  bool IsAdded(int32_t id) const override { return FindAdded(id) != nullptr; }

  int32_t vocab_size() const override { return vocab_size_; }

  int32_t AddedTokenId(std::string_view content) const override { return matcher_.IdOf(content); }

 private:
  // A part of the text without added tokens: valid UTF-8.
  void EncodeOrdinary(std::string_view part, std::string& buffer, std::vector<int32_t>& ids) const {
    if (normalize_nfc_) part = NormalizeNfc(part, buffer);
    for (size_t pos = 0; pos < part.size();) {
      const size_t end = pre_tokenizer_.PieceEnd(part, pos);
      model_->Encode(part.substr(pos, end - pos), ids);
      pos = end;
    }
  }

  const AddedTokenEntry* FindAdded(int32_t id) const {
    if (added_.empty() || id < added_.front().id) return nullptr;
    const auto it =
        std::lower_bound(added_.begin(), added_.end(), id,
                         [](const auto& entry, int32_t want) { return entry.id < want; });
    return it != added_.end() && it->id == id ? &*it : nullptr;
  }

  const std::unique_ptr<BpeModel> model_;
  const bool normalize_nfc_;
  int32_t vocab_size_;
  const PreTokenizer pre_tokenizer_;
  AddedTokenMatcher matcher_;
  std::vector<AddedTokenEntry> added_;  // by id
};

}  // namespace

absl::StatusOr<std::unique_ptr<BpeTokenizer>> BpeTokenizer::Create(std::string_view json,
                                                                   std::string_view source) {
  ASSIGN_OR_RETURN(TokenizerJson parsed, ParseTokenizerJson(json, source));
  auto model = BpeModel::Create(parsed);
  if (!model.ok()) return Annotate(model.status(), source);
  auto tokenizer = std::make_unique<BpeTokenizerImpl>(*std::move(model), parsed.normalize_nfc);
  if (absl::Status status = tokenizer->AddTokens(std::move(parsed.added_tokens)); !status.ok()) {
    return Annotate(status, source);
  }
  return tokenizer;
}

absl::StatusOr<std::unique_ptr<BpeTokenizer>> BpeTokenizer::Load(const std::string& directory) {
  const std::string path = directory + "/tokenizer.json";
  ASSIGN_OR_RETURN(const std::string json, ReadFileText(path));
  return Create(json, path);
}

std::string BpeTokenizer::Decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes;
  for (const int32_t id : ids) {
    if (skip_special && IsSpecial(id)) continue;
    bytes.append(TokenBytes(id));
  }
  std::string text;
  text.reserve(bytes.size());
  AppendSanitized(bytes, /*keep_incomplete=*/false, text);
  return text;
}

}  // namespace banyan
