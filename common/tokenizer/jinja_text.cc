#include "common/tokenizer/jinja_text.h"

#include <algorithm>

namespace banyan {

void JinjaText::AppendPart(const JinjaText& other, size_t begin, size_t end) {
  auto run = std::upper_bound(other.runs_.begin(), other.runs_.end(), begin,
                              [](size_t pos, const Run& r) { return pos < r.end; });
  while (begin < end) {
    const size_t stop = std::min(end, run->end);
    Append(std::string_view(other.bytes_).substr(begin, stop - begin), run->user_text);
    begin = stop;
    ++run;
  }
}

}  // namespace banyan
