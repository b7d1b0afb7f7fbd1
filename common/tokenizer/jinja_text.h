// A string that knows which of its bytes come from users. Every operation of the interpreter builds
// its results from Append and Substr, so the knowledge survives whatever a template does.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace banyan {

// Valid UTF-8; positions are bytes and must lie on character borders.
class JinjaText {
 public:
  JinjaText() = default;
  JinjaText(std::string bytes, bool user_text) : bytes_(std::move(bytes)) {
    if (!bytes_.empty()) runs_.push_back({bytes_.size(), user_text});
  }

  const std::string& bytes() const { return bytes_; }
  size_t size() const { return bytes_.size(); }
  bool empty() const { return bytes_.empty(); }

  void Append(std::string_view text, bool user_text) {
    if (text.empty()) return;
    bytes_.append(text);
    if (!runs_.empty() && runs_.back().user_text == user_text) {
      runs_.back().end = bytes_.size();
    } else {
      runs_.push_back({bytes_.size(), user_text});
    }
  }
  void Append(const JinjaText& other) { AppendPart(other, 0, other.size()); }
  void AppendPart(const JinjaText& other, size_t begin, size_t end);

  JinjaText Substr(size_t begin, size_t end) const {
    JinjaText part;
    part.AppendPart(*this, begin, end);
    return part;
  }

  // Stretches of one kind, in order; neighbours differ in user_text.
  struct Run {
    size_t end;
    bool user_text;
  };
  const std::vector<Run>& runs() const { return runs_; }

 private:
  std::string bytes_;
  std::vector<Run> runs_;
};

}  // namespace banyan
