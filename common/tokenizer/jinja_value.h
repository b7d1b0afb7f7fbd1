// Values of the template interpreter: Python's, as far as chat templates see them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "common/tokenizer/jinja_budget.h"
#include "common/tokenizer/jinja_text.h"

namespace banyan::jinja {

// Wide enough for sums of whatever a JSON document holds; overflow is an error, not a wrap.
__extension__ typedef __int128 Int;

struct MacroStmt;
class Value;

struct None {};
// A name or attribute that is not there. `name` is borrowed from the template.
struct Undefined {
  std::string_view name;
};
// A method that was looked up but not called: counts as defined, can do nothing else.
struct Method {
  std::string_view name;
};
struct Macro {
  const MacroStmt* macro;
};

struct List;
class Dict;
struct Namespace;
struct Loop;

// Copying is cheap: strings and containers are shared and never change (a namespace does).
class Value {
 public:
  using Variant =
      std::variant<Undefined, None, bool, Int, double, std::shared_ptr<const JinjaText>,
                   std::shared_ptr<const List>, std::shared_ptr<const Dict>,
                   std::shared_ptr<Namespace>, std::shared_ptr<const Loop>, Macro, Method>;

  Value() : v_(Undefined{}) {}
  Value(Undefined v) : v_(v) {}  // NOLINT: a value is made from each of its kinds
  Value(None v) : v_(v) {}       // NOLINT
  Value(Macro v) : v_(v) {}      // NOLINT
  Value(Method v) : v_(v) {}     // NOLINT
  static Value Bool(bool v) { return Value(Variant(v)); }
  static Value Integer(Int v) { return Value(Variant(v)); }
  static Value Float(double v) { return Value(Variant(v)); }
  static Value Text(JinjaText v) {
    return Value(Variant(std::make_shared<const JinjaText>(std::move(v))));
  }
  static Value Text(std::string_view v, bool user_text) {
    return Text(JinjaText(std::string(v), user_text));
  }
  static Value Of(std::shared_ptr<const List> v) { return Value(Variant(std::move(v))); }
  static Value Of(std::shared_ptr<const Dict> v) { return Value(Variant(std::move(v))); }
  static Value Of(std::shared_ptr<Namespace> v) { return Value(Variant(std::move(v))); }
  static Value Of(std::shared_ptr<const Loop> v) { return Value(Variant(std::move(v))); }

  bool is_undefined() const { return std::holds_alternative<Undefined>(v_); }
  bool is_none() const { return std::holds_alternative<None>(v_); }
  bool is_bool() const { return std::holds_alternative<bool>(v_); }
  bool is_float() const { return std::holds_alternative<double>(v_); }
  // A Python int; bool is one.
  bool is_integer() const { return std::holds_alternative<Int>(v_) || is_bool(); }
  bool is_number() const { return is_integer() || is_float(); }
  Int integer() const { return is_bool() ? Int{std::get<bool>(v_)} : std::get<Int>(v_); }
  double number() const {
    return is_float() ? std::get<double>(v_) : static_cast<double>(integer());
  }

  // nullptr when it is something else.
  const JinjaText* text() const { return Shared<const JinjaText>(); }
  const List* list() const { return Shared<const List>(); }
  const Dict* dict() const { return Shared<const Dict>(); }
  Namespace* ns() const { return Shared<Namespace>(); }
  const Loop* loop() const { return Shared<const Loop>(); }
  const Undefined* undefined() const { return std::get_if<Undefined>(&v_); }
  const Macro* macro() const { return std::get_if<Macro>(&v_); }
  bool is_method() const { return std::holds_alternative<Method>(v_); }

  bool Truthy() const;
  // How deep containers nest: 0 for a scalar.
  int32_t depth() const;
  // Python's name of the type, for messages: "str", "dict", ...
  std::string_view TypeName() const;

 private:
  explicit Value(Variant v) : v_(std::move(v)) {}
  template <typename T>
  T* Shared() const {
    const auto* p = std::get_if<std::shared_ptr<T>>(&v_);
    return p == nullptr ? nullptr : p->get();
  }

  Variant v_;
};

// Containers never nest deeper than this: their destruction, comparison and printing recurse.
inline constexpr int32_t kMaxValueDepth = 100;

struct List {
  explicit List(std::vector<Value> values, bool tuple = false);
  std::vector<Value> items;
  bool is_tuple;
  int32_t depth;
};

// Keys are strings, in order of insertion; the last of equal keys wins.
class Dict {
 public:
  explicit Dict(std::vector<std::pair<JinjaText, Value>> entries);
  const std::vector<std::pair<JinjaText, Value>>& entries() const { return entries_; }
  const Value* Find(std::string_view key) const;  // nullptr when absent
  int32_t depth() const { return depth_; }

 private:
  std::vector<std::pair<JinjaText, Value>> entries_;
  std::unordered_map<std::string_view, size_t> index_;  // only for more than a few entries
  int32_t depth_;
};

// What namespace() makes: the one thing a template can change. It never holds another one.
struct Namespace {
  std::vector<std::pair<std::string, Value>> attributes;
};

// The `loop` of a for statement; lives as long as the iteration.
struct Loop {
  const std::vector<Value>* items;
  size_t index0;
};

// Python's ==. Recursion is bounded by kMaxValueDepth, work by `budget`.
absl::StatusOr<bool> Equal(const Value& a, const Value& b, Budget& budget);

}  // namespace banyan::jinja
