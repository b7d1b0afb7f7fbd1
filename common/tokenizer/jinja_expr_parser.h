// The expression half of the template parser.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/strings.h"
#include "common/tokenizer/jinja_ast.h"
#include "common/tokenizer/jinja_lexer.h"

namespace banyan::jinja {

// Walks over tokens; the last one, kEnd, stays current for ever.
class TokenStream {
 public:
  explicit TokenStream(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  const Token& Current() const { return tokens_[pos_]; }
  const Token& Peek() const { return tokens_[pos_ + 1 < tokens_.size() ? pos_ + 1 : pos_]; }
  void Next() {
    if (pos_ + 1 < tokens_.size()) ++pos_;
  }
  int32_t line() const { return Current().line; }

  bool AtOperator(std::string_view text) const {
    return Current().kind == TokenKind::kOperator && Current().text == text;
  }
  bool AtName(std::string_view text) const {
    return Current().kind == TokenKind::kName && Current().text == text;
  }
  // Steps over the token if it is this one.
  bool SkipOperator(std::string_view text) {
    const bool here = AtOperator(text);
    if (here) Next();
    return here;
  }
  bool SkipName(std::string_view text) {
    const bool here = AtName(text);
    if (here) Next();
    return here;
  }

  std::string Describe() const;  // the current token, for messages

  template <typename... Args>
  absl::Status Error(fmt::format_string<Args...> format, Args&&... args) const {
    return InvalidArgumentF("line {}: {}", line(),
                            fmt::format(format, std::forward<Args>(args)...));
  }
  template <typename... Args>
  absl::Status Unimplemented(fmt::format_string<Args...> format, Args&&... args) const {
    return StatusF(absl::StatusCode::kUnimplemented, "line {}: {}", line(),
                   fmt::format(format, std::forward<Args>(args)...));
  }

 private:
  std::vector<Token> tokens_;
  size_t pos_ = 0;
};

// true, none, and, ... : never variables.
bool IsReservedName(std::string_view name);

// Precedence as in Jinja: conditional, or, and, not, comparison, + -, ~, * / // %, sign, postfix,
// filters and tests.
class ExprParser {
 public:
  explicit ExprParser(TokenStream& stream) : stream_(stream) {}

  absl::StatusOr<ExprPtr> ParseExpression();
  // An expression, or several with commas between them. Without `with_conditional`, `a if b` stops
  // before the if.
  absl::StatusOr<ExprPtr> ParseTuple(bool with_conditional);

  // After the whole template: every called name is a function or one of `macros`.
  absl::Status CheckCalls(const std::set<std::string, std::less<>>& macros) const;

 private:
  using Rule = absl::StatusOr<ExprPtr> (ExprParser::*)();

  absl::StatusOr<ExprPtr> ParseOr();
  absl::StatusOr<ExprPtr> ParseAnd();
  absl::StatusOr<ExprPtr> ParseNot();
  absl::StatusOr<ExprPtr> ParseCompare();
  absl::StatusOr<ExprPtr> ParseSum();
  absl::StatusOr<ExprPtr> ParseConcat();
  absl::StatusOr<ExprPtr> ParseProduct();
  absl::StatusOr<ExprPtr> ParseUnary() { return ParseSigned(/*with_filter=*/true); }
  absl::StatusOr<ExprPtr> ParseSigned(bool with_filter);
  absl::StatusOr<ExprPtr> ParsePrimary();
  absl::StatusOr<ExprPtr> ParsePrimaryName();
  absl::StatusOr<ExprPtr> ParseNumber();
  absl::StatusOr<ExprPtr> ParseList();
  absl::StatusOr<ExprPtr> ParseDict();
  absl::StatusOr<ExprPtr> ParsePostfix(ExprPtr expr);
  absl::StatusOr<ExprPtr> ParseSubscript(ExprPtr object);
  absl::StatusOr<ExprPtr> ParseCall(ExprPtr callee);
  absl::StatusOr<ExprPtr> ParseFilters(ExprPtr expr);
  absl::StatusOr<ExprPtr> ParseTest(ExprPtr expr);
  // From after the opening parenthesis through the closing one.
  absl::Status ParseArguments(Expr& call);

  ExprPtr Make(ExprKind kind) const;
  // Adds a child and checks the depth of the tree.
  absl::Status Adopt(Expr& parent, ExprPtr child) const;
  absl::StatusOr<ExprPtr> Binary(ExprKind kind, std::string op, ExprPtr left, Rule next);
  absl::Status Expect(std::string_view op);

  TokenStream& stream_;
  int32_t depth_ = 0;
  std::vector<std::pair<std::string, int32_t>> calls_;  // name and line
};

}  // namespace banyan::jinja
