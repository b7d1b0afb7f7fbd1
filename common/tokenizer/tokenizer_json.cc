#include "common/tokenizer/tokenizer_json.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/tokenizer/byte_alphabet.h"
#include "common/tokenizer/json_tree.h"
#include "common/tokenizer/tokenizer_features.h"

namespace banyan {
namespace {

using Json = nlohmann::json;

// Vocabulary and merges, hundreds of thousands of strings, go straight into arenas; only the small
// rest of the file becomes a document.
class Reader {
 public:
  explicit Reader(TokenizerJson& out) : out_(out) {}

  const absl::Status& status() const { return status_; }
  const Json& document() const { return tree_.root(); }
  bool has_vocab() const { return seen_vocab_; }
  bool has_merges() const { return seen_merges_; }
  // Entries of the vocabulary that the byte alphabet cannot spell; fine if they are added tokens.
  const std::vector<std::pair<std::string, int32_t>>& unspelled() const { return unspelled_; }

  // What nlohmann's SAX parser calls; false stops it.
  using number_integer_t = Json::number_integer_t;
  using number_unsigned_t = Json::number_unsigned_t;
  using number_float_t = Json::number_float_t;
  using string_t = Json::string_t;
  using binary_t = Json::binary_t;

  bool null() { return Value(nullptr); }
  bool boolean(bool value) { return Value(value); }
  bool number_integer(number_integer_t value) { return Value(value); }
  bool number_float(number_float_t value, const string_t&) { return Value(value); }
  bool binary(binary_t&) { return false; }

  bool number_unsigned(number_unsigned_t value) {
    if (state_ != State::kVocab) return Value(value);
    if (value >= static_cast<uint64_t>(kMaxTokenId)) {
      return Fail(InvalidArgumentF("model.vocab[\"{}\"]: id {}, expected less than {}", tree_.key(),
                                   value, kMaxTokenId));
    }
    const auto id = static_cast<int32_t>(value);
    if (AppendAlphabetBytes(tree_.key(), out_.vocab.tail())) {
      out_.vocab.Commit();
      out_.vocab_ids.push_back(id);
    } else {
      out_.vocab.Rollback();
      unspelled_.emplace_back(tree_.key(), id);
    }
    return true;
  }

  bool string(string_t& value) {
    if (state_ == State::kMergePair) {
      if (++pair_size_ > 2) return PairSizeError();
      return MergePart(value);
    }
    if (state_ != State::kMerges) return Value(std::move(value));
    const size_t space = value.find(' ');
    if (space == std::string::npos || value.find(' ', space + 1) != std::string::npos) {
      return Fail(InvalidArgumentF("{}: \"{}\", expected two parts with one space between them",
                                   MergePath(), value));
    }
    const std::string_view text = value;
    return MergePart(text.substr(0, space)) && MergePart(text.substr(space + 1));
  }

  bool key(string_t& value) {
    tree_.SetKey(std::move(value));
    return true;
  }

  bool start_object(size_t) {
    if (state_ == State::kDocument && tree_.depth() == 2 && in_model_ && tree_.key() == "vocab") {
      if (std::exchange(seen_vocab_, true)) {
        return Fail(InvalidArgumentF("model.vocab appears twice"));
      }
      state_ = State::kVocab;
      return true;
    }
    return Open(Json::object());
  }

  bool end_object() {
    if (state_ == State::kVocab) {
      state_ = State::kDocument;
      return true;
    }
    return Close();
  }

  bool start_array(size_t) {
    if (state_ == State::kMerges) {
      state_ = State::kMergePair;
      pair_size_ = 0;
      return true;
    }
    if (state_ == State::kDocument && tree_.depth() == 2 && in_model_ && tree_.key() == "merges") {
      if (std::exchange(seen_merges_, true)) {
        return Fail(InvalidArgumentF("model.merges appears twice"));
      }
      state_ = State::kMerges;
      return true;
    }
    return Open(Json::array());
  }

  bool end_array() {
    if (state_ == State::kMergePair) {
      if (pair_size_ != 2) return PairSizeError();
      state_ = State::kMerges;
      return true;
    }
    if (state_ == State::kMerges) {
      state_ = State::kDocument;
      return true;
    }
    return Close();
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error) {
    return Fail(JsonSyntaxError(position, error.what()));
  }

 private:
  enum class State { kDocument, kVocab, kMerges, kMergePair };
  static constexpr size_t kMaxDepth = 32;

  bool Fail(absl::Status status) {
    status_ = std::move(status);
    return false;
  }

  std::string MergePath() const { return fmt::format("model.merges[{}]", out_.merges.size() / 2); }

  bool PairSizeError() {
    const size_t merge = (out_.merges.size() - static_cast<size_t>(std::min(pair_size_, 2))) / 2;
    return Fail(InvalidArgumentF("model.merges[{}]: {} parts, expected 2", merge, pair_size_));
  }

  bool MergePart(std::string_view part) {
    if (!AppendAlphabetBytes(part, out_.merges.tail()) || part.empty()) {
      return Fail(InvalidArgumentF("{}: \"{}\" is not spelled in the byte-level alphabet",
                                   MergePath(), part));
    }
    out_.merges.Commit();
    return true;
  }

  template <typename T>
  bool Value(T&& value) {
    switch (state_) {
      case State::kVocab:
        return Fail(InvalidArgumentF("model.vocab[\"{}\"]: expected an id", tree_.key()));
      case State::kMerges:
      case State::kMergePair:
        return Fail(InvalidArgumentF("{}: expected a string or a pair of strings", MergePath()));
      case State::kDocument:
        break;
    }
    tree_.Add(Json(std::forward<T>(value)));
    return true;
  }

  bool Open(Json empty) {
    if (state_ != State::kDocument) return Value(std::move(empty));
    if (tree_.depth() == 1) in_model_ = tree_.key() == "model";
    if (absl::Status status = tree_.Open(std::move(empty)); !status.ok()) return Fail(status);
    return true;
  }

  bool Close() {
    tree_.Close();
    return true;
  }

  TokenizerJson& out_;
  absl::Status status_;
  State state_ = State::kDocument;
  JsonTree<Json> tree_{kMaxDepth};
  bool in_model_ = false;
  bool seen_vocab_ = false;
  bool seen_merges_ = false;
  int32_t pair_size_ = 0;
  std::vector<std::pair<std::string, int32_t>> unspelled_;
};

absl::Status Read(std::string_view json, TokenizerJson& out) {
  Reader reader(out);
  const bool parsed = Json::sax_parse(json.begin(), json.end(), &reader);
  RETURN_IF_ERROR(reader.status());
  if (!parsed) return InvalidArgumentF("not valid JSON");
  RETURN_IF_ERROR(ReadTokenizerFeatures(reader.document(), out));
  if (!reader.has_vocab()) return InvalidArgumentF("model.vocab: missing, expected an object");
  if (!reader.has_merges() || (out.merges.size() == 0 && out.vocab.size() > 256)) {
    return InvalidArgumentF(
        "model.merges: missing, expected a list; without merges a vocabulary of {} entries cannot "
        "encode text",
        out.vocab.size());
  }
  std::map<int32_t, std::string_view> added;
  for (const AddedTokenEntry& token : out.added_tokens) added.emplace(token.id, token.content);
  for (const auto& [content, id] : reader.unspelled()) {
    const auto it = added.find(id);
    if (it == added.end() || it->second != content) {
      return InvalidArgumentF("model.vocab[\"{}\"]: not spelled in the byte-level alphabet",
                              content);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenizerJson> ParseTokenizerJson(std::string_view json, std::string_view source) {
  TokenizerJson out;
  if (absl::Status status = Read(json, out); !status.ok()) return Annotate(status, source);
  return out;
}

}  // namespace banyan
