#include "common/tokenizer/jinja_parser.h"

#include <algorithm>
#include <charconv>
#include <initializer_list>
#include <set>
#include <string>
#include <utility>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/tokenizer/jinja_builtins.h"
#include "common/tokenizer/jinja_expr_parser.h"
#include "common/tokenizer/jinja_lexer.h"

namespace banyan::jinja {
namespace {

using EndTags = std::initializer_list<std::string_view>;

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : stream_(std::move(tokens)), exprs_(stream_) {}

  absl::StatusOr<Block> Run() {
    ASSIGN_OR_RETURN(Block block, ParseBlock({}, ""));
    RETURN_IF_ERROR(exprs_.CheckCalls(macros_));
    return block;
  }

 private:
  // Statements up to a tag in `ends`, whose name is left as the current token; with no `ends`, up
  // to the end of the template.
  absl::StatusOr<Block> ParseBlock(EndTags ends, std::string_view opener) {
    if (++depth_ > kMaxTreeDepth) {
      return stream_.Error("blocks nest deeper than {} levels", kMaxTreeDepth);
    }
    Block block;
    const int32_t opened = stream_.line();
    while (true) {
      const Token& token = stream_.Current();
      if (token.kind == TokenKind::kEnd) {
        if (ends.size() > 0) {
          return InvalidArgumentF("line {}: '{}' without its end, expected {{% {} %}}", opened,
                                  opener, *(ends.end() - 1));
        }
        --depth_;
        return block;
      }
      if (token.kind == TokenKind::kData) {
        auto stmt = Make(StmtKind::kText);
        stmt->value = Value::Text(token.text, /*user_text=*/false);
        block.push_back(std::move(stmt));
        stream_.Next();
        continue;
      }
      const bool print = token.kind == TokenKind::kPrintBegin;
      stream_.Next();
      if (print) {
        auto stmt = Make(StmtKind::kPrint);
        ASSIGN_OR_RETURN(stmt->expr, exprs_.ParseTuple(/*with_conditional=*/true));
        RETURN_IF_ERROR(Expect(TokenKind::kPrintEnd, "}}"));
        block.push_back(std::move(stmt));
        continue;
      }
      if (stream_.Current().kind != TokenKind::kName) {
        return stream_.Error("expected the name of a tag, found {}", stream_.Describe());
      }
      if (std::find(ends.begin(), ends.end(), stream_.Current().text) != ends.end()) {
        --depth_;
        return block;
      }
      ASSIGN_OR_RETURN(auto stmt, ParseTag());
      RETURN_IF_ERROR(ExpectBlockEnd());
      block.push_back(std::move(stmt));
    }
  }

  std::unique_ptr<Stmt> Make(StmtKind kind) const {
    auto stmt = std::make_unique<Stmt>();
    stmt->kind = kind;
    stmt->line = stream_.line();
    return stmt;
  }

  absl::Status Expect(TokenKind kind, std::string_view what) {
    if (stream_.Current().kind != kind) {
      return stream_.Error("expected {}, found {}", what, stream_.Describe());
    }
    stream_.Next();
    return absl::OkStatus();
  }
  absl::Status ExpectBlockEnd() { return Expect(TokenKind::kBlockEnd, "%}"); }

  absl::StatusOr<std::string> ParseName() {
    if (stream_.Current().kind != TokenKind::kName) {
      return stream_.Error("expected a name, found {}", stream_.Describe());
    }
    std::string name = stream_.Current().text;
    if (IsReservedName(name)) return stream_.Error("'{}' cannot be assigned to", name);
    stream_.Next();
    return name;
  }

  // From the name of the tag to just before its (last) block end.
  absl::StatusOr<std::unique_ptr<Stmt>> ParseTag() {
    const std::string name = stream_.Current().text;
    auto stmt = Make(StmtKind::kScope);
    if (name == "if") return ParseIf(std::move(stmt));
    if (name == "for") return ParseFor(std::move(stmt));
    if (name == "set") return ParseSet(std::move(stmt));
    if (name == "macro") return ParseMacro(std::move(stmt));
    if (name == "break" || name == "continue") {
      if (loop_depth_ == 0) return stream_.Error("'{}' outside a for loop", name);
      stmt->kind = name == "break" ? StmtKind::kBreak : StmtKind::kContinue;
      stream_.Next();
      return stmt;
    }
    if (name == "generation") {  // marks what the assistant said; prints its body
      stream_.Next();
      ASSIGN_OR_RETURN(stmt->body, ParseBody({"endgeneration"}, name));
      stream_.Next();
      return stmt;
    }
    if (name.substr(0, 3) == "end" || name == "else" || name == "elif") {
      return stream_.Error("unexpected tag '{}'", name);
    }
    return stream_.Unimplemented("tag '{}' is not supported", name);
  }

  // The block end of the opening tag, then the body.
  absl::StatusOr<Block> ParseBody(EndTags ends, std::string_view opener) {
    RETURN_IF_ERROR(ExpectBlockEnd());
    return ParseBlock(ends, opener);
  }

  absl::StatusOr<std::unique_ptr<Stmt>> ParseIf(std::unique_ptr<Stmt> stmt) {
    stmt->kind = StmtKind::kIf;
    while (true) {
      stream_.Next();  // if, elif
      ASSIGN_OR_RETURN(ExprPtr condition, exprs_.ParseTuple(/*with_conditional=*/false));
      ASSIGN_OR_RETURN(Block body, ParseBody({"elif", "else", "endif"}, "if"));
      stmt->branches.emplace_back(std::move(condition), std::move(body));
      if (stream_.Current().text != "elif") break;
    }
    if (stream_.Current().text == "else") {
      stream_.Next();
      ASSIGN_OR_RETURN(stmt->otherwise, ParseBody({"endif"}, "else"));
    }
    stream_.Next();
    return stmt;
  }

  absl::StatusOr<std::unique_ptr<Stmt>> ParseFor(std::unique_ptr<Stmt> stmt) {
    stmt->kind = StmtKind::kFor;
    stream_.Next();
    RETURN_IF_ERROR(ParseTargets(stmt->names));
    if (!stream_.SkipName("in")) return stream_.Error("expected in, found {}", stream_.Describe());
    ASSIGN_OR_RETURN(stmt->expr, exprs_.ParseTuple(/*with_conditional=*/false));
    if (stream_.SkipName("if")) {
      ASSIGN_OR_RETURN(stmt->filter, exprs_.ParseExpression());
    }
    if (stream_.SkipName("recursive")) {
      return stream_.Unimplemented("recursive for loops are not supported");
    }
    ++loop_depth_;
    auto body = ParseBody({"else", "endfor"}, "for");
    --loop_depth_;
    RETURN_IF_ERROR(body.status());
    stmt->body = *std::move(body);
    if (stream_.Current().text == "else") {
      stream_.Next();
      ASSIGN_OR_RETURN(stmt->otherwise, ParseBody({"endfor"}, "else"));
    }
    stream_.Next();
    return stmt;
  }

  // a   or   a, b   or   (a, b)
  absl::Status ParseTargets(std::vector<std::string>& names) {
    const bool parenthesis = stream_.SkipOperator("(");
    do {
      ASSIGN_OR_RETURN(std::string name, ParseName());
      names.push_back(std::move(name));
    } while (stream_.SkipOperator(","));
    if (parenthesis && !stream_.SkipOperator(")")) {
      return stream_.Error("expected ), found {}", stream_.Describe());
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<Stmt>> ParseSet(std::unique_ptr<Stmt> stmt) {
    stmt->kind = StmtKind::kSet;
    stream_.Next();
    RETURN_IF_ERROR(ParseTargets(stmt->names));
    if (stmt->names.size() == 1 && stream_.SkipOperator(".")) {
      stmt->kind = StmtKind::kSetAttribute;
      ASSIGN_OR_RETURN(std::string attribute, ParseName());
      stmt->names.push_back(std::move(attribute));
    }
    if (stream_.SkipOperator("=")) {
      ASSIGN_OR_RETURN(stmt->expr, exprs_.ParseTuple(/*with_conditional=*/true));
      return stmt;
    }
    if (stmt->kind == StmtKind::kSetAttribute || stmt->names.size() != 1) {
      return stream_.Error("expected =, found {}", stream_.Describe());
    }
    if (stream_.Current().kind == TokenKind::kOperator && stream_.Current().text == "|") {
      return stream_.Unimplemented("a filter on a set block is not supported");
    }
    stmt->kind = StmtKind::kSetBlock;
    // A break inside could not leave the loop with the text half made.
    const int32_t loops = std::exchange(loop_depth_, 0);
    auto body = ParseBody({"endset"}, "set");
    loop_depth_ = loops;
    RETURN_IF_ERROR(body.status());
    stmt->body = *std::move(body);
    stream_.Next();
    return stmt;
  }

  absl::StatusOr<std::unique_ptr<Stmt>> ParseMacro(std::unique_ptr<Stmt> stmt) {
    if (depth_ > 1) {
      return stream_.Unimplemented("a macro inside another block is not supported");
    }
    stmt->kind = StmtKind::kMacro;
    stmt->macro = std::make_unique<MacroStmt>();
    MacroStmt& macro = *stmt->macro;
    stream_.Next();
    ASSIGN_OR_RETURN(macro.name, ParseName());
    if (!stream_.SkipOperator("(")) {
      return stream_.Error("expected (, found {}", stream_.Describe());
    }
    while (!stream_.SkipOperator(")")) {
      if (!macro.parameters.empty() && !stream_.SkipOperator(",")) {
        return stream_.Error("expected , or ), found {}", stream_.Describe());
      }
      ASSIGN_OR_RETURN(std::string parameter, ParseName());
      if (std::find(macro.parameters.begin(), macro.parameters.end(), parameter) !=
          macro.parameters.end()) {
        return stream_.Error("macro {} has two parameters '{}'", macro.name, parameter);
      }
      macro.parameters.push_back(std::move(parameter));
      if (stream_.SkipOperator("=")) {
        ASSIGN_OR_RETURN(ExprPtr value, exprs_.ParseExpression());
        macro.defaults.push_back(std::move(value));
      } else if (!macro.defaults.empty()) {
        return stream_.Error("parameter '{}' without a default after one with a default",
                             macro.parameters.back());
      }
    }
    macros_.insert(macro.name);
    ASSIGN_OR_RETURN(macro.body, ParseBody({"endmacro"}, "macro"));
    stream_.Next();
    // {% endmacro name %}
    stream_.SkipName(macro.name);
    return stmt;
  }

  TokenStream stream_;
  ExprParser exprs_;
  int32_t depth_ = 0;
  int32_t loop_depth_ = 0;
  std::set<std::string, std::less<>> macros_;
};

}  // namespace

absl::StatusOr<Block> Parse(std::string_view source) {
  ASSIGN_OR_RETURN(std::vector<Token> tokens, Tokenize(source));
  return Parser(std::move(tokens)).Run();
}

}  // namespace banyan::jinja
