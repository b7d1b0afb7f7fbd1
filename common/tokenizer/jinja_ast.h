// A parsed template. Immutable; shared by all renderings.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/tokenizer/jinja_value.h"

namespace banyan::jinja {

// Expressions and statements never nest deeper than this: parsing, evaluation and destruction
// recurse.
inline constexpr int32_t kMaxTreeDepth = 150;

enum class ExprKind : uint8_t {
  kLiteral,      // value
  kName,         // text
  kList,         // children
  kTuple,        // children
  kDict,         // children: key, value, key, value, ...
  kAttribute,    // children[0].text
  kItem,         // children[0][children[1]]
  kSlice,        // children[0][children[1] : children[2] : children[3]], the last three may be null
  kCall,         // text(children, keywords): a global function or a macro
  kMethod,       // children[0].text(children[1...], keywords)
  kFilter,       // children[0] | text(children[1...], keywords)
  kTest,         // children[0] is text(children[1...])
  kNot,          // one child
  kNegative,     // one child
  kPositive,     // one child
  kAnd,          // two children
  kOr,           // two children
  kArithmetic,   // text: + - * / // %, two children
  kConcat,       // children joined as text: ~
  kCompare,      // children[0] ops[0] children[1] ops[1] children[2] ...
  kConditional,  // children: then, condition, else (may be null)
};

struct Expr {
  ExprKind kind;
  int32_t line = 0;
  int32_t depth = 1;
  std::string text;
  Value value;
  std::vector<std::unique_ptr<Expr>> children;
  std::vector<std::pair<std::string, std::unique_ptr<Expr>>> keywords;
  std::vector<std::string> ops;
};
using ExprPtr = std::unique_ptr<Expr>;

struct Stmt;
using Block = std::vector<std::unique_ptr<Stmt>>;

enum class StmtKind : uint8_t {
  kText,          // value
  kPrint,         // expr
  kIf,            // branches, otherwise
  kFor,           // names, expr, filter (may be null), body, otherwise
  kSet,           // names = expr
  kSetAttribute,  // names[0].names[1] = expr, of a namespace
  kSetBlock,      // names[0] = what body prints
  kMacro,         // macro
  kBreak,
  kContinue,
  kScope,  // body
};

struct MacroStmt {
  std::string name;
  std::vector<std::string> parameters;
  std::vector<ExprPtr> defaults;  // of the last parameters
  Block body;
};

struct Stmt {
  StmtKind kind;
  int32_t line = 0;
  Value value;
  ExprPtr expr;
  ExprPtr filter;
  std::vector<std::string> names;
  std::vector<std::pair<ExprPtr, Block>> branches;
  Block body;
  Block otherwise;
  std::unique_ptr<MacroStmt> macro;
};

}  // namespace banyan::jinja
