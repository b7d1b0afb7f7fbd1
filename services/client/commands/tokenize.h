// `banyan tokenize`: text or conversations to token ids and back, offline, with the tokenizer and
// chat template of a directory.
#pragma once

#include <istream>
#include <optional>
#include <ostream>
#include <string>

namespace banyan::client {

struct TokenizeOptions {
  std::string tokenizer;  // a directory with tokenizer.json
  bool json_lines = false;
  std::string output = "text";      // or "json"; without json_lines
  std::optional<std::string> text;  // without json_lines; absent: all of `in`
};

// With json_lines, one reply line on `out` for each line of `in`, in order:
//   {"text": "..."}                                       {"ids": [...]}
//   {"messages": [...], "tools": [...], "template_args": {...}, "add_generation_prompt": true}
//                                                         {"rendered": "...", "ids": [...]}
//   {"ids": [...], "skip_special_tokens": true}           {"text": "..."}
//   anything else                                         {"error": "line 3: ..."}
// add_generation_prompt and skip_special_tokens are false where left out. Special tokens count in
// "text" (the raw path), but not inside messages. Invalid UTF-8 is read as U+FFFD.
// Otherwise the ids of one text, with spaces between them or as {"ids": [...]}.
// Returns the exit code: 0; 1 after any bad line or when the tokenizer cannot be loaded (one line
// on `err` says why); 2 for options that contradict each other.
int RunTokenize(const TokenizeOptions& options, std::istream& in, std::ostream& out,
                std::ostream& err);

}  // namespace banyan::client
