// What Python's operators do with the interpreter's values. Messages have no line; the evaluator
// adds it.
#pragma once

#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/tokenizer/jinja_budget.h"
#include "common/tokenizer/jinja_value.h"

namespace banyan::jinja {

// `object.name` and `object[key]`; names are borrowed from the template.
absl::StatusOr<Value> GetAttribute(const Value& object, std::string_view name, Budget& budget);
absl::StatusOr<Value> GetItem(const Value& object, const Value& key, Budget& budget);
// `object[start:stop:step]`; none where left out.
absl::StatusOr<Value> GetSlice(const Value& object, const Value& start, const Value& stop,
                               const Value& step, Budget& budget);

// The items `for` visits: of a list, the keys of a dict, the characters of a string.
absl::StatusOr<std::vector<Value>> Iterate(const Value& value, Budget& budget);
absl::StatusOr<int64_t> Length(const Value& value, Budget& budget);
// Python's `item in container`.
absl::StatusOr<bool> Contains(const Value& container, const Value& item, Budget& budget);
// One of + - * / // %.
absl::StatusOr<Value> Arithmetic(std::string_view op, const Value& a, const Value& b,
                                 Budget& budget);
absl::StatusOr<Value> Negate(const Value& value);
// One of == != < <= > >=.
absl::StatusOr<bool> Compare(std::string_view op, const Value& a, const Value& b, Budget& budget);

// A list or dict, refused when it nests too deeply or holds a namespace.
absl::StatusOr<Value> MakeList(std::vector<Value> items, Budget& budget, bool tuple = false);
absl::StatusOr<Value> MakeDict(std::vector<std::pair<JinjaText, Value>> entries, Budget& budget);

// "'x' is undefined": for operations on what is not there.
absl::Status UndefinedError(const Value& value);

}  // namespace banyan::jinja
