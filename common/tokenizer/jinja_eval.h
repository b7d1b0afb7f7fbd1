// Runs a parsed template over variables. One Evaluator renders once, on one thread.
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/tokenizer/jinja_ast.h"
#include "common/tokenizer/jinja_builtins.h"

namespace banyan::jinja {

inline constexpr int64_t kMaxSteps = 10'000'000;

class Evaluator {
 public:
  // Borrows both; `variables` are what the template sees as its globals.
  Evaluator(const Block& block, const Dict& variables) : block_(block), variables_(variables) {}

  // kInvalidArgument, kUnimplemented or kResourceExhausted: "line 3: ...".
  absl::StatusOr<JinjaText> Run();

 private:
  // Names set in one for body, macro or at the top.
  struct Scope {
    Scope* parent;
    std::vector<std::pair<std::string_view, Value>> names;
    void Set(std::string_view name, Value value);
  };
  enum class Flow : uint8_t { kNext, kBreak, kContinue };

  absl::StatusOr<Flow> Exec(const Block& block, Scope& scope);
  absl::StatusOr<Flow> ExecStmt(const Stmt& stmt, Scope& scope);
  absl::StatusOr<Flow> ExecFor(const Stmt& stmt, Scope& scope);
  absl::Status ExecSet(const Stmt& stmt, Scope& scope);
  absl::Status Assign(const Stmt& stmt, const Value& value, Scope& scope);
  absl::Status Print(const JinjaText& text);

  absl::StatusOr<Value> Eval(const Expr& expr, Scope& scope);
  absl::StatusOr<Value> EvalKind(const Expr& expr, Scope& scope);
  absl::StatusOr<Value> EvalCompare(const Expr& expr, Scope& scope);
  absl::StatusOr<Value> EvalConcat(const Expr& expr, Scope& scope);
  absl::StatusOr<Value> EvalItems(const Expr& expr, Scope& scope);
  absl::StatusOr<Value> EvalCall(const Expr& expr, Scope& scope);
  absl::StatusOr<Value> CallMacro(const MacroStmt& macro, const Arguments& args);
  absl::StatusOr<Arguments> EvalArguments(const Expr& expr, size_t first_child, Scope& scope);
  Value Resolve(std::string_view name, const Scope& scope) const;

  const Block& block_;
  const Dict& variables_;
  Budget budget_{kMaxSteps};
  int32_t depth_ = 0;  // of Eval and Exec together
  Scope top_{nullptr, {}};
  JinjaText* output_ = nullptr;
};

}  // namespace banyan::jinja
