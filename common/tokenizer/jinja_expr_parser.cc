#include "common/tokenizer/jinja_expr_parser.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <iterator>

#include "common/base/status_macros.h"
#include "common/tokenizer/jinja_builtins.h"

namespace banyan::jinja {
namespace {

// Counts how deep the parser itself has recursed.
class DepthGuard {
 public:
  explicit DepthGuard(int32_t& depth) : depth_(depth) { ++depth_; }
  ~DepthGuard() { --depth_; }
  DepthGuard(const DepthGuard&) = delete;
  DepthGuard& operator=(const DepthGuard&) = delete;

 private:
  int32_t& depth_;
};

// Brackets within brackets; each costs a dozen stack frames.
constexpr int32_t kMaxParserDepth = 100;

}  // namespace

std::string TokenStream::Describe() const {
  switch (Current().kind) {
    case TokenKind::kData:
      return "text";
    case TokenKind::kBlockBegin:
      return "'{%'";
    case TokenKind::kBlockEnd:
      return "'%}'";
    case TokenKind::kPrintBegin:
      return "'{{'";
    case TokenKind::kPrintEnd:
      return "'}}'";
    case TokenKind::kString:
      return "a string";
    case TokenKind::kEnd:
      return "the end of the template";
    default:
      return fmt::format("'{}'", Current().text);
  }
}

bool IsReservedName(std::string_view name) {
  constexpr std::string_view kNames[] = {"true", "True", "false", "False", "none", "None", "and",
                                         "or",   "not",  "in",    "is",    "if",   "else"};
  return std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames);
}

ExprPtr ExprParser::Make(ExprKind kind) const {
  auto expr = std::make_unique<Expr>();
  expr->kind = kind;
  expr->line = stream_.line();
  return expr;
}

absl::Status ExprParser::Adopt(Expr& parent, ExprPtr child) const {
  if (child != nullptr) {
    parent.depth = std::max(parent.depth, child->depth + 1);
    if (parent.depth > kMaxTreeDepth) {
      return stream_.Error("expression nests deeper than {} levels", kMaxTreeDepth);
    }
  }
  parent.children.push_back(std::move(child));
  return absl::OkStatus();
}

absl::Status ExprParser::Expect(std::string_view op) {
  if (stream_.SkipOperator(op)) return absl::OkStatus();
  return stream_.Error("expected {}, found {}", op, stream_.Describe());
}

absl::Status ExprParser::CheckCalls(const std::set<std::string, std::less<>>& macros) const {
  for (const auto& [name, line] : calls_) {
    if (!IsKnownFunction(name) && macros.count(name) == 0) {
      return StatusF(absl::StatusCode::kUnimplemented, "line {}: function '{}' is not supported",
                     line, name);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ExprPtr> ExprParser::ParseTuple(bool with_conditional) {
  const auto parse = [&] { return with_conditional ? ParseExpression() : ParseOr(); };
  ASSIGN_OR_RETURN(ExprPtr first, parse());
  if (!stream_.AtOperator(",")) return first;
  ExprPtr tuple = Make(ExprKind::kTuple);
  RETURN_IF_ERROR(Adopt(*tuple, std::move(first)));
  while (stream_.SkipOperator(",")) {
    const TokenKind kind = stream_.Current().kind;
    if (kind == TokenKind::kBlockEnd || kind == TokenKind::kPrintEnd || stream_.AtOperator(")")) {
      break;
    }
    ASSIGN_OR_RETURN(ExprPtr item, parse());
    RETURN_IF_ERROR(Adopt(*tuple, std::move(item)));
  }
  return tuple;
}

absl::StatusOr<ExprPtr> ExprParser::ParseExpression() {
  const DepthGuard guard(depth_);
  if (depth_ > kMaxParserDepth) {
    return stream_.Error("expression nests deeper than {} brackets", kMaxParserDepth);
  }
  ASSIGN_OR_RETURN(ExprPtr expr, ParseOr());
  while (stream_.AtName("if")) {
    ExprPtr conditional = Make(ExprKind::kConditional);
    stream_.Next();
    RETURN_IF_ERROR(Adopt(*conditional, std::move(expr)));
    ASSIGN_OR_RETURN(ExprPtr condition, ParseOr());
    RETURN_IF_ERROR(Adopt(*conditional, std::move(condition)));
    ExprPtr otherwise;
    if (stream_.SkipName("else")) {
      ASSIGN_OR_RETURN(otherwise, ParseExpression());
    }
    RETURN_IF_ERROR(Adopt(*conditional, std::move(otherwise)));
    expr = std::move(conditional);
  }
  return expr;
}

absl::StatusOr<ExprPtr> ExprParser::Binary(ExprKind kind, std::string op, ExprPtr left, Rule next) {
  ExprPtr expr = Make(kind);
  expr->text = std::move(op);
  stream_.Next();
  RETURN_IF_ERROR(Adopt(*expr, std::move(left)));
  ASSIGN_OR_RETURN(ExprPtr right, (this->*next)());
  RETURN_IF_ERROR(Adopt(*expr, std::move(right)));
  return expr;
}

absl::StatusOr<ExprPtr> ExprParser::ParseOr() {
  ASSIGN_OR_RETURN(ExprPtr expr, ParseAnd());
  while (stream_.AtName("or")) {
    ASSIGN_OR_RETURN(expr, Binary(ExprKind::kOr, "or", std::move(expr), &ExprParser::ParseAnd));
  }
  return expr;
}

absl::StatusOr<ExprPtr> ExprParser::ParseAnd() {
  ASSIGN_OR_RETURN(ExprPtr expr, ParseNot());
  while (stream_.AtName("and")) {
    ASSIGN_OR_RETURN(expr, Binary(ExprKind::kAnd, "and", std::move(expr), &ExprParser::ParseNot));
  }
  return expr;
}

absl::StatusOr<ExprPtr> ExprParser::ParseNot() {
  if (!stream_.AtName("not")) return ParseCompare();
  const DepthGuard guard(depth_);
  if (depth_ > kMaxParserDepth) return stream_.Error("too many 'not' in a row");
  ExprPtr expr = Make(ExprKind::kNot);
  stream_.Next();
  ASSIGN_OR_RETURN(ExprPtr operand, ParseNot());
  RETURN_IF_ERROR(Adopt(*expr, std::move(operand)));
  return expr;
}

absl::StatusOr<ExprPtr> ExprParser::ParseCompare() {
  ASSIGN_OR_RETURN(ExprPtr first, ParseSum());
  ExprPtr compare;
  while (true) {
    std::string op;
    for (const std::string_view known : {"==", "!=", "<", "<=", ">", ">="}) {
      if (stream_.AtOperator(known)) op = known;
    }
    if (stream_.AtName("in")) op = "in";
    if (stream_.AtName("not") && stream_.Peek().kind == TokenKind::kName &&
        stream_.Peek().text == "in") {
      op = "not in";
      stream_.Next();
    }
    if (op.empty()) break;
    if (compare == nullptr) {
      compare = Make(ExprKind::kCompare);
      RETURN_IF_ERROR(Adopt(*compare, std::move(first)));
    }
    stream_.Next();
    ASSIGN_OR_RETURN(ExprPtr next, ParseSum());
    RETURN_IF_ERROR(Adopt(*compare, std::move(next)));
    compare->ops.push_back(std::move(op));
  }
  return compare == nullptr ? std::move(first) : std::move(compare);
}

absl::StatusOr<ExprPtr> ExprParser::ParseSum() {
  ASSIGN_OR_RETURN(ExprPtr expr, ParseConcat());
  while (stream_.AtOperator("+") || stream_.AtOperator("-")) {
    ASSIGN_OR_RETURN(expr, Binary(ExprKind::kArithmetic, stream_.Current().text, std::move(expr),
                                  &ExprParser::ParseConcat));
  }
  return expr;
}

absl::StatusOr<ExprPtr> ExprParser::ParseConcat() {
  ASSIGN_OR_RETURN(ExprPtr first, ParseProduct());
  if (!stream_.AtOperator("~")) return first;
  ExprPtr concat = Make(ExprKind::kConcat);
  RETURN_IF_ERROR(Adopt(*concat, std::move(first)));
  while (stream_.SkipOperator("~")) {
    ASSIGN_OR_RETURN(ExprPtr next, ParseProduct());
    RETURN_IF_ERROR(Adopt(*concat, std::move(next)));
  }
  return concat;
}

absl::StatusOr<ExprPtr> ExprParser::ParseProduct() {
  ASSIGN_OR_RETURN(ExprPtr expr, ParseUnary());
  while (true) {
    if (stream_.AtOperator("**")) return stream_.Unimplemented("operator ** is not supported");
    if (!stream_.AtOperator("*") && !stream_.AtOperator("/") && !stream_.AtOperator("//") &&
        !stream_.AtOperator("%")) {
      return expr;
    }
    ASSIGN_OR_RETURN(expr, Binary(ExprKind::kArithmetic, stream_.Current().text, std::move(expr),
                                  &ExprParser::ParseUnary));
  }
}

absl::StatusOr<ExprPtr> ExprParser::ParseSigned(bool with_filter) {
  const DepthGuard guard(depth_);
  if (depth_ > kMaxParserDepth) {
    return stream_.Error("expression nests deeper than {} brackets", kMaxParserDepth);
  }
  ExprPtr expr;
  if (stream_.AtOperator("-") || stream_.AtOperator("+")) {
    expr = Make(stream_.AtOperator("-") ? ExprKind::kNegative : ExprKind::kPositive);
    stream_.Next();
    ASSIGN_OR_RETURN(ExprPtr operand, ParseSigned(/*with_filter=*/false));
    RETURN_IF_ERROR(Adopt(*expr, std::move(operand)));
  } else {
    ASSIGN_OR_RETURN(expr, ParsePrimary());
  }
  ASSIGN_OR_RETURN(expr, ParsePostfix(std::move(expr)));
  if (!with_filter) return expr;
  return ParseFilters(std::move(expr));
}

absl::StatusOr<ExprPtr> ExprParser::ParsePrimary() {
  const Token& token = stream_.Current();
  if (token.kind == TokenKind::kName) return ParsePrimaryName();
  if (token.kind == TokenKind::kInteger || token.kind == TokenKind::kFloat) return ParseNumber();
  if (token.kind == TokenKind::kString) {
    ExprPtr expr = Make(ExprKind::kLiteral);
    std::string text;
    while (stream_.Current().kind == TokenKind::kString) {
      text += stream_.Current().text;
      stream_.Next();
    }
    expr->value = Value::Text(text, /*user_text=*/false);
    return expr;
  }
  if (stream_.AtOperator("[")) return ParseList();
  if (stream_.AtOperator("{")) return ParseDict();
  if (stream_.SkipOperator("(")) {
    ExprPtr empty = Make(ExprKind::kTuple);
    if (stream_.SkipOperator(")")) return empty;
    ASSIGN_OR_RETURN(ExprPtr expr, ParseTuple(/*with_conditional=*/true));
    RETURN_IF_ERROR(Expect(")"));
    return expr;
  }
  return stream_.Error("expected an expression, found {}", stream_.Describe());
}

absl::StatusOr<ExprPtr> ExprParser::ParsePrimaryName() {
  const std::string name = stream_.Current().text;
  ExprPtr expr = Make(ExprKind::kLiteral);
  if (name == "true" || name == "True") {
    expr->value = Value::Bool(true);
  } else if (name == "false" || name == "False") {
    expr->value = Value::Bool(false);
  } else if (name == "none" || name == "None") {
    expr->value = None{};
  } else if (IsReservedName(name)) {
    return stream_.Error("expected an expression, found '{}'", name);
  } else {
    expr->kind = ExprKind::kName;
    expr->text = name;
  }
  stream_.Next();
  return expr;
}

absl::StatusOr<ExprPtr> ExprParser::ParseNumber() {
  const Token& token = stream_.Current();
  ExprPtr expr = Make(ExprKind::kLiteral);
  const char* begin = token.text.data();
  const char* end = begin + token.text.size();
  if (token.kind == TokenKind::kInteger) {
    int64_t value = 0;
    if (std::from_chars(begin, end, value).ec != std::errc()) {
      return stream_.Error("number {} is too large", token.text);
    }
    expr->value = Value::Integer(value);
  } else {
    double value = 0;
    if (std::from_chars(begin, end, value).ec != std::errc() || !std::isfinite(value)) {
      return stream_.Error("number {} is out of range", token.text);
    }
    expr->value = Value::Float(value);
  }
  stream_.Next();
  return expr;
}

absl::StatusOr<ExprPtr> ExprParser::ParseList() {
  ExprPtr list = Make(ExprKind::kList);
  stream_.Next();
  while (!stream_.SkipOperator("]")) {
    if (!list->children.empty()) {
      RETURN_IF_ERROR(Expect(","));
      if (stream_.SkipOperator("]")) break;
    }
    ASSIGN_OR_RETURN(ExprPtr item, ParseExpression());
    RETURN_IF_ERROR(Adopt(*list, std::move(item)));
  }
  return list;
}

absl::StatusOr<ExprPtr> ExprParser::ParseDict() {
  ExprPtr dict = Make(ExprKind::kDict);
  stream_.Next();
  while (!stream_.SkipOperator("}")) {
    if (!dict->children.empty()) {
      RETURN_IF_ERROR(Expect(","));
      if (stream_.SkipOperator("}")) break;
    }
    ASSIGN_OR_RETURN(ExprPtr key, ParseExpression());
    RETURN_IF_ERROR(Adopt(*dict, std::move(key)));
    RETURN_IF_ERROR(Expect(":"));
    ASSIGN_OR_RETURN(ExprPtr value, ParseExpression());
    RETURN_IF_ERROR(Adopt(*dict, std::move(value)));
  }
  return dict;
}

absl::StatusOr<ExprPtr> ExprParser::ParsePostfix(ExprPtr expr) {
  while (true) {
    if (stream_.SkipOperator(".")) {
      const Token& token = stream_.Current();
      if (token.kind == TokenKind::kInteger) {
        ASSIGN_OR_RETURN(ExprPtr index, ParseNumber());
        ExprPtr item = Make(ExprKind::kItem);
        RETURN_IF_ERROR(Adopt(*item, std::move(expr)));
        RETURN_IF_ERROR(Adopt(*item, std::move(index)));
        expr = std::move(item);
        continue;
      }
      if (token.kind != TokenKind::kName) {
        return stream_.Error("expected a name after '.', found {}", stream_.Describe());
      }
      ExprPtr attribute = Make(ExprKind::kAttribute);
      attribute->text = token.text;
      stream_.Next();
      RETURN_IF_ERROR(Adopt(*attribute, std::move(expr)));
      expr = std::move(attribute);
    } else if (stream_.AtOperator("[")) {
      ASSIGN_OR_RETURN(expr, ParseSubscript(std::move(expr)));
    } else if (stream_.AtOperator("(")) {
      ASSIGN_OR_RETURN(expr, ParseCall(std::move(expr)));
    } else {
      return expr;
    }
  }
}

absl::StatusOr<ExprPtr> ExprParser::ParseSubscript(ExprPtr object) {
  ExprPtr expr = Make(ExprKind::kItem);
  stream_.Next();
  RETURN_IF_ERROR(Adopt(*expr, std::move(object)));
  ExprPtr parts[3];
  int32_t part = 0;
  while (!stream_.AtOperator("]")) {
    if (stream_.SkipOperator(":")) {
      expr->kind = ExprKind::kSlice;
      if (++part > 2) return stream_.Error("a slice has at most 3 parts");
      continue;
    }
    if (stream_.AtOperator(",")) {
      return stream_.Unimplemented("several subscripts with commas are not supported");
    }
    if (parts[part] != nullptr) return stream_.Error("expected ], found {}", stream_.Describe());
    ASSIGN_OR_RETURN(parts[part], ParseExpression());
  }
  if (expr->kind == ExprKind::kItem && parts[0] == nullptr) {
    return stream_.Error("expected a subscript, found ']'");
  }
  stream_.Next();
  const int32_t num_parts = expr->kind == ExprKind::kItem ? 1 : 3;
  for (int32_t i = 0; i < num_parts; ++i) RETURN_IF_ERROR(Adopt(*expr, std::move(parts[i])));
  return expr;
}

absl::StatusOr<ExprPtr> ExprParser::ParseCall(ExprPtr callee) {
  ExprPtr call;
  if (callee->kind == ExprKind::kName) {
    call = Make(ExprKind::kCall);
    call->text = callee->text;
    calls_.emplace_back(callee->text, stream_.line());
  } else if (callee->kind == ExprKind::kAttribute) {
    if (!IsKnownMethod(callee->text)) {
      return stream_.Unimplemented("method '{}' is not supported", callee->text);
    }
    call = Make(ExprKind::kMethod);
    call->text = callee->text;
    RETURN_IF_ERROR(Adopt(*call, std::move(callee->children[0])));
  } else {
    return stream_.Unimplemented("calling the result of an expression is not supported");
  }
  stream_.Next();
  RETURN_IF_ERROR(ParseArguments(*call));
  return call;
}

absl::Status ExprParser::ParseArguments(Expr& call) {
  for (bool first = true; !stream_.SkipOperator(")"); first = false) {
    if (!first) {
      RETURN_IF_ERROR(Expect(","));
      if (stream_.SkipOperator(")")) break;
    }
    if (stream_.AtOperator("*") || stream_.AtOperator("**")) {
      return stream_.Unimplemented("argument lists with {} are not supported",
                                   stream_.Current().text);
    }
    const Token& next = stream_.Peek();
    if (stream_.Current().kind == TokenKind::kName && next.kind == TokenKind::kOperator &&
        next.text == "=") {
      std::string name = stream_.Current().text;
      for (const auto& keyword : call.keywords) {
        if (keyword.first == name) return stream_.Error("argument '{}' given twice", name);
      }
      stream_.Next();
      stream_.Next();
      ASSIGN_OR_RETURN(ExprPtr value, ParseExpression());
      call.depth = std::max(call.depth, value->depth + 1);
      call.keywords.emplace_back(std::move(name), std::move(value));
    } else {
      if (!call.keywords.empty()) {
        return stream_.Error("a positional argument after one with a name");
      }
      ASSIGN_OR_RETURN(ExprPtr value, ParseExpression());
      RETURN_IF_ERROR(Adopt(call, std::move(value)));
    }
  }
  if (call.depth > kMaxTreeDepth) {
    return stream_.Error("expression nests deeper than {} levels", kMaxTreeDepth);
  }
  return absl::OkStatus();
}

absl::StatusOr<ExprPtr> ExprParser::ParseFilters(ExprPtr expr) {
  while (true) {
    if (stream_.SkipOperator("|")) {
      if (stream_.Current().kind != TokenKind::kName) {
        return stream_.Error("expected the name of a filter, found {}", stream_.Describe());
      }
      ExprPtr filter = Make(ExprKind::kFilter);
      filter->text = stream_.Current().text;
      if (!IsKnownFilter(filter->text)) {
        return stream_.Unimplemented("filter '{}' is not supported", filter->text);
      }
      stream_.Next();
      RETURN_IF_ERROR(Adopt(*filter, std::move(expr)));
      if (stream_.SkipOperator("(")) RETURN_IF_ERROR(ParseArguments(*filter));
      expr = std::move(filter);
    } else if (stream_.AtName("is")) {
      ASSIGN_OR_RETURN(expr, ParseTest(std::move(expr)));
    } else if (stream_.AtOperator("(")) {
      return stream_.Unimplemented("calling the result of a filter is not supported");
    } else {
      return expr;
    }
  }
}

absl::StatusOr<ExprPtr> ExprParser::ParseTest(ExprPtr expr) {
  stream_.Next();
  const bool negated = stream_.SkipName("not");
  ExprPtr test = Make(ExprKind::kTest);
  if (stream_.Current().kind != TokenKind::kName) {
    return stream_.Error("expected the name of a test, found {}", stream_.Describe());
  }
  test->text = stream_.Current().text;
  if (!IsKnownTest(test->text)) {
    return stream_.Unimplemented("test '{}' is not supported", test->text);
  }
  stream_.Next();
  RETURN_IF_ERROR(Adopt(*test, std::move(expr)));
  const TokenKind kind = stream_.Current().kind;
  const bool operand = kind == TokenKind::kString || kind == TokenKind::kInteger ||
                       kind == TokenKind::kFloat || stream_.AtOperator("[") ||
                       stream_.AtOperator("{") ||
                       (kind == TokenKind::kName && !stream_.AtName("else") &&
                        !stream_.AtName("or") && !stream_.AtName("and"));
  if (stream_.SkipOperator("(")) {
    RETURN_IF_ERROR(ParseArguments(*test));
  } else if (stream_.AtName("is")) {
    return stream_.Error("tests cannot be chained with 'is'");
  } else if (operand && !stream_.AtName("if") && !stream_.AtName("in") && !stream_.AtName("not")) {
    ASSIGN_OR_RETURN(ExprPtr argument, ParsePrimary());
    ASSIGN_OR_RETURN(argument, ParsePostfix(std::move(argument)));
    RETURN_IF_ERROR(Adopt(*test, std::move(argument)));
  }
  if (!test->keywords.empty()) return stream_.Unimplemented("tests with named arguments");
  if (!negated) return test;
  ExprPtr expr_not = Make(ExprKind::kNot);
  RETURN_IF_ERROR(Adopt(*expr_not, std::move(test)));
  return expr_not;
}

}  // namespace banyan::jinja
