// Filters, tests, functions and methods by name. The parser asks what exists, the evaluator runs
// it.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/tokenizer/jinja_budget.h"
#include "common/tokenizer/jinja_value.h"

namespace banyan::jinja {

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string_view, Value>> keywords;

  // Argument `position`, or the one named `name`; nullptr when neither was given.
  const Value* Get(size_t position, std::string_view name) const;
  // kInvalidArgument unless every argument is one of `names` (in this order when positional) and
  // the first `num_required` are there.
  absl::Status Check(std::string_view callee, std::initializer_list<std::string_view> names,
                     size_t num_required) const;
};

bool IsKnownFilter(std::string_view name);
bool IsKnownTest(std::string_view name);
bool IsKnownFunction(std::string_view name);
bool IsKnownMethod(std::string_view name);

// Messages have no line; the caller adds it.
absl::StatusOr<Value> CallFilter(std::string_view name, const Value& value, const Arguments& args,
                                 Budget& budget);
absl::StatusOr<bool> CallTest(std::string_view name, const Value& value, const Arguments& args,
                              Budget& budget);
absl::StatusOr<Value> CallFunction(std::string_view name, const Arguments& args, Budget& budget);
absl::StatusOr<Value> CallMethod(std::string_view name, const Value& object, const Arguments& args,
                                 Budget& budget);

}  // namespace banyan::jinja
