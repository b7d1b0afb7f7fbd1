#include "common/tokenizer/jinja_eval.h"

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/tokenizer/jinja_format.h"
#include "common/tokenizer/jinja_operators.h"

namespace banyan::jinja {
namespace {

// Macros calling macros: the stack, not the step count, is what runs out.
constexpr int32_t kMaxEvalDepth = 600;

absl::Status AtLine(const absl::Status& status, int32_t line) {
  // The innermost line is the one that helps.
  if (ToStd(status.message()).substr(0, 5) == "line ") return status;
  return Annotate(status, fmt::format("line {}", line));
}

class DepthGuard {
 public:
  explicit DepthGuard(int32_t& depth) : depth_(depth) { ++depth_; }
  ~DepthGuard() { --depth_; }
  DepthGuard(const DepthGuard&) = delete;
  DepthGuard& operator=(const DepthGuard&) = delete;

 private:
  int32_t& depth_;
};

}  // namespace

void Evaluator::Scope::Set(std::string_view name, Value value) {
  for (auto& entry : names) {
    if (entry.first == name) {
      entry.second = std::move(value);
      return;
    }
  }
  names.emplace_back(name, std::move(value));
}

Value Evaluator::Resolve(std::string_view name, const Scope& scope) const {
  for (const Scope* s = &scope; s != nullptr; s = s->parent) {
    for (const auto& entry : s->names) {
      if (entry.first == name) return entry.second;
    }
  }
  const Value* variable = variables_.Find(name);
  return variable != nullptr ? *variable : Value(Undefined{name});
}

absl::StatusOr<JinjaText> Evaluator::Run() {
  JinjaText output;
  output_ = &output;
  RETURN_IF_ERROR(Exec(block_, top_).status());
  return output;
}

absl::Status Evaluator::Print(const JinjaText& text) {
  RETURN_IF_ERROR(budget_.ChargeText(text.size()));
  if (output_->size() + text.size() > kMaxTextBytes) {
    return StatusF(absl::StatusCode::kResourceExhausted, "more than {} bytes of output",
                   kMaxTextBytes);
  }
  output_->Append(text);
  return absl::OkStatus();
}

absl::StatusOr<Evaluator::Flow> Evaluator::Exec(const Block& block, Scope& scope) {
  const DepthGuard guard(depth_);
  for (const auto& stmt : block) {
    if (depth_ > kMaxEvalDepth) {
      return StatusF(absl::StatusCode::kResourceExhausted, "line {}: nested deeper than {} levels",
                     stmt->line, kMaxEvalDepth);
    }
    auto flow = ExecStmt(*stmt, scope);
    if (!flow.ok()) return AtLine(flow.status(), stmt->line);
    if (*flow != Flow::kNext) return *flow;
  }
  return Flow::kNext;
}

absl::StatusOr<Evaluator::Flow> Evaluator::ExecStmt(const Stmt& stmt, Scope& scope) {
  RETURN_IF_ERROR(budget_.Charge(1));
  switch (stmt.kind) {
    case StmtKind::kText:
      RETURN_IF_ERROR(Print(*stmt.value.text()));
      return Flow::kNext;
    case StmtKind::kPrint: {
      ASSIGN_OR_RETURN(const Value value, Eval(*stmt.expr, scope));
      if (const JinjaText* text = value.text()) {
        RETURN_IF_ERROR(Print(*text));
      } else {
        ASSIGN_OR_RETURN(const JinjaText printed, ToText(value, budget_));
        RETURN_IF_ERROR(Print(printed));
      }
      return Flow::kNext;
    }
    case StmtKind::kIf:
      for (const auto& [condition, body] : stmt.branches) {
        ASSIGN_OR_RETURN(const Value value, Eval(*condition, scope));
        if (value.Truthy()) return Exec(body, scope);
      }
      return Exec(stmt.otherwise, scope);
    case StmtKind::kFor:
      return ExecFor(stmt, scope);
    case StmtKind::kSet:
    case StmtKind::kSetAttribute:
    case StmtKind::kSetBlock:
      RETURN_IF_ERROR(ExecSet(stmt, scope));
      return Flow::kNext;
    case StmtKind::kMacro:
      scope.Set(stmt.macro->name, Macro{stmt.macro.get()});
      return Flow::kNext;
    case StmtKind::kBreak:
      return Flow::kBreak;
    case StmtKind::kContinue:
      return Flow::kContinue;
    case StmtKind::kScope: {
      Scope inner{&scope, {}};
      return Exec(stmt.body, inner);
    }
  }
  return Flow::kNext;
}

absl::Status Evaluator::Assign(const Stmt& stmt, const Value& value, Scope& scope) {
  if (stmt.names.size() == 1) {
    scope.Set(stmt.names[0], value);
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(value, budget_));
  if (items.size() != stmt.names.size()) {
    return InvalidArgumentF("{} values to unpack, expected {}", items.size(), stmt.names.size());
  }
  for (size_t i = 0; i < items.size(); ++i) scope.Set(stmt.names[i], items[i]);
  return absl::OkStatus();
}

absl::Status Evaluator::ExecSet(const Stmt& stmt, Scope& scope) {
  if (stmt.kind == StmtKind::kSetBlock) {
    JinjaText text;
    JinjaText* outer = std::exchange(output_, &text);
    Scope inner{&scope, {}};
    const auto flow = Exec(stmt.body, inner);
    output_ = outer;
    RETURN_IF_ERROR(flow.status());
    scope.Set(stmt.names[0], Value::Text(std::move(text)));
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(Value value, Eval(*stmt.expr, scope));
  if (stmt.kind == StmtKind::kSet) return Assign(stmt, value, scope);
  const Value target = Resolve(stmt.names[0], scope);
  if (target.ns() == nullptr) {
    return InvalidArgumentF("'{}' is not a namespace, its attributes cannot be set", stmt.names[0]);
  }
  if (value.ns() != nullptr || value.loop() != nullptr) {
    return InvalidArgumentF("a {} cannot be put in a namespace", value.TypeName());
  }
  for (auto& attribute : target.ns()->attributes) {
    if (attribute.first == stmt.names[1]) {
      attribute.second = std::move(value);
      return absl::OkStatus();
    }
  }
  target.ns()->attributes.emplace_back(stmt.names[1], std::move(value));
  return absl::OkStatus();
}

absl::StatusOr<Evaluator::Flow> Evaluator::ExecFor(const Stmt& stmt, Scope& scope) {
  ASSIGN_OR_RETURN(const Value iterable, Eval(*stmt.expr, scope));
  ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(iterable, budget_));
  if (stmt.filter != nullptr) {
    std::vector<Value> kept;
    for (Value& item : items) {
      Scope inner{&scope, {}};
      RETURN_IF_ERROR(Assign(stmt, item, inner));
      ASSIGN_OR_RETURN(const Value keep, Eval(*stmt.filter, inner));
      if (keep.Truthy()) kept.push_back(std::move(item));
    }
    items = std::move(kept);
  }
  if (items.empty()) {
    Scope inner{&scope, {}};
    return Exec(stmt.otherwise, inner);
  }
  for (size_t i = 0; i < items.size(); ++i) {
    RETURN_IF_ERROR(budget_.Charge(1));
    Scope inner{&scope, {}};
    inner.Set("loop", Value::Of(std::make_shared<const Loop>(Loop{&items, i})));
    RETURN_IF_ERROR(Assign(stmt, items[i], inner));
    ASSIGN_OR_RETURN(const Flow flow, Exec(stmt.body, inner));
    if (flow == Flow::kBreak) break;
  }
  return Flow::kNext;
}

absl::StatusOr<Value> Evaluator::Eval(const Expr& expr, Scope& scope) {
  const DepthGuard guard(depth_);
  if (depth_ > kMaxEvalDepth) {
    return StatusF(absl::StatusCode::kResourceExhausted, "line {}: nested deeper than {} levels",
                   expr.line, kMaxEvalDepth);
  }
  absl::Status charged = budget_.Charge(1);
  if (!charged.ok()) return AtLine(charged, expr.line);
  auto value = EvalKind(expr, scope);
  if (!value.ok()) return AtLine(value.status(), expr.line);
  return value;
}

absl::StatusOr<Value> Evaluator::EvalKind(const Expr& expr, Scope& scope) {
  const auto child = [&](size_t i) { return Eval(*expr.children[i], scope); };
  switch (expr.kind) {
    case ExprKind::kLiteral:
      return expr.value;
    case ExprKind::kName:
      return Resolve(expr.text, scope);
    case ExprKind::kList:
    case ExprKind::kTuple:
    case ExprKind::kDict:
      return EvalItems(expr, scope);
    case ExprKind::kAttribute: {
      ASSIGN_OR_RETURN(const Value object, child(0));
      return GetAttribute(object, expr.text, budget_);
    }
    case ExprKind::kItem: {
      ASSIGN_OR_RETURN(const Value object, child(0));
      ASSIGN_OR_RETURN(const Value key, child(1));
      return GetItem(object, key, budget_);
    }
    case ExprKind::kSlice: {
      ASSIGN_OR_RETURN(const Value object, child(0));
      Value bounds[3] = {None{}, None{}, None{}};
      for (size_t i = 0; i < 3; ++i) {
        if (expr.children[i + 1] == nullptr) continue;
        ASSIGN_OR_RETURN(bounds[i], child(i + 1));
      }
      return GetSlice(object, bounds[0], bounds[1], bounds[2], budget_);
    }
    case ExprKind::kCall:
      return EvalCall(expr, scope);
    case ExprKind::kMethod: {
      ASSIGN_OR_RETURN(const Value object, child(0));
      ASSIGN_OR_RETURN(const Arguments args, EvalArguments(expr, 1, scope));
      return CallMethod(expr.text, object, args, budget_);
    }
    case ExprKind::kFilter: {
      ASSIGN_OR_RETURN(const Value value, child(0));
      ASSIGN_OR_RETURN(const Arguments args, EvalArguments(expr, 1, scope));
      return CallFilter(expr.text, value, args, budget_);
    }
    case ExprKind::kTest: {
      ASSIGN_OR_RETURN(const Value value, child(0));
      ASSIGN_OR_RETURN(const Arguments args, EvalArguments(expr, 1, scope));
      ASSIGN_OR_RETURN(const bool yes, CallTest(expr.text, value, args, budget_));
      return Value::Bool(yes);
    }
    case ExprKind::kNot: {
      ASSIGN_OR_RETURN(const Value value, child(0));
      return Value::Bool(!value.Truthy());
    }
    case ExprKind::kNegative: {
      ASSIGN_OR_RETURN(const Value value, child(0));
      return Negate(value);
    }
    case ExprKind::kPositive: {
      ASSIGN_OR_RETURN(const Value value, child(0));
      if (!value.is_number()) {
        return InvalidArgumentF("bad operand type for unary +: '{}'", value.TypeName());
      }
      return value.is_bool() ? Value::Integer(value.integer()) : value;
    }
    case ExprKind::kAnd: {
      ASSIGN_OR_RETURN(Value value, child(0));
      return value.Truthy() ? child(1) : std::move(value);
    }
    case ExprKind::kOr: {
      ASSIGN_OR_RETURN(Value value, child(0));
      return value.Truthy() ? std::move(value) : child(1);
    }
    case ExprKind::kArithmetic: {
      ASSIGN_OR_RETURN(const Value left, child(0));
      ASSIGN_OR_RETURN(const Value right, child(1));
      return Arithmetic(expr.text, left, right, budget_);
    }
    case ExprKind::kConcat:
      return EvalConcat(expr, scope);
    case ExprKind::kCompare:
      return EvalCompare(expr, scope);
    case ExprKind::kConditional: {
      ASSIGN_OR_RETURN(const Value condition, child(1));
      if (condition.Truthy()) return child(0);
      if (expr.children[2] == nullptr) return Value(Undefined{"inline if without else"});
      return child(2);
    }
  }
  return Value();
}

absl::StatusOr<Value> Evaluator::EvalCompare(const Expr& expr, Scope& scope) {
  ASSIGN_OR_RETURN(Value left, Eval(*expr.children[0], scope));
  for (size_t i = 0; i < expr.ops.size(); ++i) {
    ASSIGN_OR_RETURN(Value right, Eval(*expr.children[i + 1], scope));
    const std::string& op = expr.ops[i];
    bool yes = false;
    if (op == "in" || op == "not in") {
      ASSIGN_OR_RETURN(yes, Contains(right, left, budget_));
      yes = yes == (op == "in");
    } else {
      ASSIGN_OR_RETURN(yes, Compare(op, left, right, budget_));
    }
    if (!yes) return Value::Bool(false);
    left = std::move(right);
  }
  return Value::Bool(true);
}

absl::StatusOr<Value> Evaluator::EvalConcat(const Expr& expr, Scope& scope) {
  JinjaText out;
  for (const ExprPtr& part : expr.children) {
    ASSIGN_OR_RETURN(const Value value, Eval(*part, scope));
    ASSIGN_OR_RETURN(const JinjaText text, ToText(value, budget_));
    if (out.size() + text.size() > kMaxTextBytes)
      return budget_.ChargeText(out.size() + text.size());
    RETURN_IF_ERROR(budget_.ChargeText(text.size()));
    out.Append(text);
  }
  return Value::Text(std::move(out));
}

absl::StatusOr<Value> Evaluator::EvalItems(const Expr& expr, Scope& scope) {
  std::vector<Value> items;
  items.reserve(expr.children.size());
  for (const ExprPtr& item : expr.children) {
    ASSIGN_OR_RETURN(Value value, Eval(*item, scope));
    items.push_back(std::move(value));
  }
  if (expr.kind != ExprKind::kDict) {
    return MakeList(std::move(items), budget_, expr.kind == ExprKind::kTuple);
  }
  std::vector<std::pair<JinjaText, Value>> entries;
  for (size_t i = 0; i + 1 < items.size(); i += 2) {
    if (items[i].text() == nullptr) {
      return StatusF(absl::StatusCode::kUnimplemented,
                     "a dict key of type {} is not supported, expected a string",
                     items[i].TypeName());
    }
    entries.emplace_back(*items[i].text(), std::move(items[i + 1]));
  }
  return MakeDict(std::move(entries), budget_);
}

absl::StatusOr<Arguments> Evaluator::EvalArguments(const Expr& expr, size_t first_child,
                                                   Scope& scope) {
  Arguments args;
  for (size_t i = first_child; i < expr.children.size(); ++i) {
    ASSIGN_OR_RETURN(Value value, Eval(*expr.children[i], scope));
    args.positional.push_back(std::move(value));
  }
  for (const auto& [name, keyword] : expr.keywords) {
    ASSIGN_OR_RETURN(Value value, Eval(*keyword, scope));
    args.keywords.emplace_back(name, std::move(value));
  }
  return args;
}

absl::StatusOr<Value> Evaluator::EvalCall(const Expr& expr, Scope& scope) {
  const Value callee = Resolve(expr.text, scope);
  ASSIGN_OR_RETURN(const Arguments args, EvalArguments(expr, 0, scope));
  if (const Macro* macro = callee.macro()) return CallMacro(*macro->macro, args);
  if (callee.is_undefined() && IsKnownFunction(expr.text)) {
    return CallFunction(expr.text, args, budget_);
  }
  if (callee.is_undefined()) return UndefinedError(callee);
  return InvalidArgumentF("'{}' is a {}, it cannot be called", expr.text, callee.TypeName());
}

absl::StatusOr<Value> Evaluator::CallMacro(const MacroStmt& macro, const Arguments& args) {
  const size_t num_parameters = macro.parameters.size();
  if (args.positional.size() > num_parameters) {
    return InvalidArgumentF("macro '{}' takes at most {} arguments, {} given", macro.name,
                            num_parameters, args.positional.size());
  }
  Scope scope{&top_, {}};
  size_t num_keywords_used = 0;
  for (size_t i = 0; i < num_parameters; ++i) {
    const std::string& name = macro.parameters[i];
    const Value* given = args.Get(i, name);
    if (given != nullptr) {
      if (i >= args.positional.size()) ++num_keywords_used;
      scope.Set(name, *given);
      continue;
    }
    const size_t first_default = num_parameters - macro.defaults.size();
    if (i < first_default) {
      scope.Set(name, Undefined{name});
      continue;
    }
    ASSIGN_OR_RETURN(Value value, Eval(*macro.defaults[i - first_default], scope));
    scope.Set(name, std::move(value));
  }
  if (num_keywords_used != args.keywords.size()) {
    return InvalidArgumentF("macro '{}': an argument by name that it does not have, or twice",
                            macro.name);
  }
  JinjaText text;
  JinjaText* outer = std::exchange(output_, &text);
  const auto flow = Exec(macro.body, scope);
  output_ = outer;
  RETURN_IF_ERROR(flow.status());
  return Value::Text(std::move(text));
}

}  // namespace banyan::jinja
