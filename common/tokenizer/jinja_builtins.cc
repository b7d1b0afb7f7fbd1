// Filters, tests and global functions, each a row of a table.
#include "common/tokenizer/jinja_builtins.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <iterator>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/tokenizer/jinja_format.h"
#include "common/tokenizer/jinja_operators.h"
#include "common/tokenizer/jinja_strings.h"

namespace banyan::jinja {
namespace {

using Filter = absl::StatusOr<Value> (*)(const Value&, const Arguments&, Budget&);

absl::StatusOr<Value> ToJsonFilter(const Value& value, const Arguments& args, Budget& budget) {
  RETURN_IF_ERROR(args.Check("tojson", {"ensure_ascii", "indent"}, 0));
  JsonStyle style;
  if (const Value* ascii = args.Get(0, "ensure_ascii")) style.ensure_ascii = ascii->Truthy();
  if (const Value* indent = args.Get(1, "indent"); indent != nullptr && !indent->is_none()) {
    if (!indent->is_integer() || indent->integer() < 0 || indent->integer() > 64) {
      return InvalidArgumentF("tojson: expected an indent of 0 to 64");
    }
    style.indent = static_cast<int32_t>(indent->integer());
  }
  ASSIGN_OR_RETURN(std::string json, ToJson(value, style, budget));
  return Value::Text(json, /*user_text=*/true);
}

absl::StatusOr<Value> LengthFilter(const Value& value, const Arguments& args, Budget& budget) {
  RETURN_IF_ERROR(args.Check("length", {}, 0));
  ASSIGN_OR_RETURN(const int64_t length, Length(value, budget));
  return Value::Integer(length);
}

absl::StatusOr<Value> StringFilter(const Value& value, const Arguments& args, Budget& budget) {
  RETURN_IF_ERROR(args.Check("string", {}, 0));
  if (value.text() != nullptr) return value;
  ASSIGN_OR_RETURN(JinjaText text, ToText(value, budget));
  return Value::Text(std::move(text));
}

// A method of strings applied to str(value).
absl::StatusOr<Value> AsText(std::string_view method, const Value& value, const Arguments& args,
                             Budget& budget) {
  ASSIGN_OR_RETURN(const Value text, StringFilter(value, {}, budget));
  return CallMethod(method, text, args, budget);
}

absl::StatusOr<Value> TrimFilter(const Value& value, const Arguments& args, Budget& budget) {
  return AsText("strip", value, args, budget);
}
absl::StatusOr<Value> UpperFilter(const Value& value, const Arguments& args, Budget& budget) {
  return AsText("upper", value, args, budget);
}
absl::StatusOr<Value> LowerFilter(const Value& value, const Arguments& args, Budget& budget) {
  return AsText("lower", value, args, budget);
}
absl::StatusOr<Value> CapitalizeFilter(const Value& value, const Arguments& args, Budget& budget) {
  return AsText("capitalize", value, args, budget);
}
absl::StatusOr<Value> ReplaceFilter(const Value& value, const Arguments& args, Budget& budget) {
  return AsText("replace", value, args, budget);
}

absl::StatusOr<Value> ItemsFilter(const Value& value, const Arguments& args, Budget& budget) {
  RETURN_IF_ERROR(args.Check("items", {}, 0));
  if (value.is_undefined()) return MakeList({}, budget);
  if (value.dict() == nullptr) {
    return InvalidArgumentF("items: expected a mapping, found {}", value.TypeName());
  }
  return CallMethod("items", value, args, budget);
}

absl::StatusOr<Value> DefaultFilter(const Value& value, const Arguments& args, Budget&) {
  RETURN_IF_ERROR(args.Check("default", {"default_value", "boolean"}, 0));
  const Value* otherwise = args.Get(0, "default_value");
  const Value* boolean = args.Get(1, "boolean");
  const bool falsy = boolean != nullptr && boolean->Truthy() && !value.Truthy();
  if (!value.is_undefined() && !falsy) return value;
  return otherwise == nullptr ? Value::Text("", false) : *otherwise;
}

absl::StatusOr<Value> ListFilter(const Value& value, const Arguments& args, Budget& budget) {
  RETURN_IF_ERROR(args.Check("list", {}, 0));
  ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(value, budget));
  return MakeList(std::move(items), budget);
}

// The value at a dotted path, as `attribute=` arguments of filters have it.
absl::StatusOr<Value> AttributePath(Value value, const JinjaText& path, Budget& budget) {
  for (const JinjaText& part : Split(path, ".", -1)) {
    const std::string& name = part.bytes();
    Value key = Value::Text(part);
    int64_t index = 0;
    const auto parsed = std::from_chars(name.data(), name.data() + name.size(), index);
    if (!name.empty() && parsed.ec == std::errc() && parsed.ptr == name.data() + name.size()) {
      key = Value::Integer(index);
    }
    ASSIGN_OR_RETURN(value, GetItem(value, key, budget));
  }
  return value;
}

absl::StatusOr<Value> JoinFilter(const Value& value, const Arguments& args, Budget& budget) {
  RETURN_IF_ERROR(args.Check("join", {"d", "attribute"}, 0));
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(value, budget));
  const Value* separator = args.Get(0, "d");
  JinjaText between;
  if (separator != nullptr) {
    ASSIGN_OR_RETURN(between, ToText(*separator, budget));
  }
  const Value* attribute = args.Get(1, "attribute");
  JinjaText out;
  for (size_t i = 0; i < items.size(); ++i) {
    Value item = items[i];
    if (attribute != nullptr && attribute->text() != nullptr) {
      ASSIGN_OR_RETURN(item, AttributePath(item, *attribute->text(), budget));
    }
    ASSIGN_OR_RETURN(const JinjaText text, ToText(item, budget));
    if (i > 0) out.Append(between);
    out.Append(text);
    if (out.size() > kMaxTextBytes) return budget.ChargeText(out.size());
    RETURN_IF_ERROR(budget.ChargeText(text.size() + between.size()));
  }
  return Value::Text(std::move(out));
}

absl::StatusOr<Value> FirstFilter(const Value& value, const Arguments& args, Budget& budget) {
  RETURN_IF_ERROR(args.Check("first", {}, 0));
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(value, budget));
  return items.empty() ? Value(Undefined{"first item"}) : items.front();
}

absl::StatusOr<Value> LastFilter(const Value& value, const Arguments& args, Budget& budget) {
  RETURN_IF_ERROR(args.Check("last", {}, 0));
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(value, budget));
  return items.empty() ? Value(Undefined{"last item"}) : items.back();
}

absl::StatusOr<Value> ReverseFilter(const Value& value, const Arguments& args, Budget& budget) {
  RETURN_IF_ERROR(args.Check("reverse", {}, 0));
  ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(value, budget));
  std::reverse(items.begin(), items.end());
  if (value.text() == nullptr) return MakeList(std::move(items), budget);
  JinjaText out;
  for (const Value& item : items) out.Append(*item.text());
  return Value::Text(std::move(out));
}

absl::StatusOr<Value> SafeFilter(const Value& value, const Arguments& args, Budget& budget) {
  return StringFilter(value, args, budget);  // nothing is ever escaped
}

absl::StatusOr<Value> IntFilter(const Value& value, const Arguments& args, Budget& budget) {
  RETURN_IF_ERROR(args.Check("int", {"default"}, 0));
  const Value* otherwise = args.Get(0, "default");
  const Value fallback = otherwise == nullptr ? Value::Integer(0) : *otherwise;
  if (value.is_integer()) return Value::Integer(value.integer());
  double number = NAN;
  if (value.is_float()) number = value.number();
  if (value.text() != nullptr) {
    RETURN_IF_ERROR(budget.ChargeText(value.text()->size()));
    const JinjaText text = Strip(*value.text(), nullptr, true, true);
    const char* begin = text.bytes().data();
    const char* end = begin + text.size();
    if (begin != end && *begin == '+') ++begin;
    int64_t integer = 0;
    const auto parsed = std::from_chars(begin, end, integer);
    if (parsed.ec == std::errc() && parsed.ptr == end) return Value::Integer(integer);
    const auto as_float = std::from_chars(begin, end, number);
    if (as_float.ec != std::errc() || as_float.ptr != end) return fallback;
  }
  if (!std::isfinite(number) || std::abs(number) >= 1e18) return fallback;
  return Value::Integer(static_cast<Int>(number));
}

absl::StatusOr<Value> FloatFilter(const Value& value, const Arguments& args, Budget& budget) {
  RETURN_IF_ERROR(args.Check("float", {"default"}, 0));
  const Value* otherwise = args.Get(0, "default");
  if (value.is_number()) return Value::Float(value.number());
  if (value.text() != nullptr) {
    RETURN_IF_ERROR(budget.ChargeText(value.text()->size()));
    const JinjaText text = Strip(*value.text(), nullptr, true, true);
    double number = 0;
    const char* end = text.bytes().data() + text.size();
    const auto parsed = std::from_chars(text.bytes().data(), end, number);
    if (parsed.ec == std::errc() && parsed.ptr == end) return Value::Float(number);
  }
  return otherwise == nullptr ? Value::Float(0) : *otherwise;
}

absl::StatusOr<Value> AbsFilter(const Value& value, const Arguments& args, Budget&) {
  RETURN_IF_ERROR(args.Check("abs", {}, 0));
  if (value.is_number() && value.number() < 0) return Negate(value);
  if (value.is_number()) return value;
  return InvalidArgumentF("abs: expected a number, found {}", value.TypeName());
}

absl::StatusOr<Value> IndentFilter(const Value& value, const Arguments& args, Budget& budget) {
  RETURN_IF_ERROR(args.Check("indent", {"width", "first", "blank"}, 0));
  const Value* width = args.Get(0, "width");
  const Value* first = args.Get(1, "first");
  const Value* blank = args.Get(2, "blank");
  JinjaText indent("    ", false);
  if (width != nullptr && width->text() != nullptr) {
    indent = *width->text();
  } else if (width != nullptr) {
    if (!width->is_integer() || width->integer() < 0 || width->integer() > 1000) {
      return InvalidArgumentF("indent: expected a width of 0 to 1000");
    }
    indent = JinjaText(std::string(static_cast<size_t>(width->integer()), ' '), false);
  }
  ASSIGN_OR_RETURN(JinjaText text, ToText(value, budget));
  RETURN_IF_ERROR(budget.ChargeText(text.size()));
  text.Append("\n", false);
  const std::vector<JinjaText> lines = SplitLines(text);
  JinjaText out;
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out.Append("\n", false);
    const bool every = blank != nullptr && blank->Truthy();
    if (i == 0 ? first != nullptr && first->Truthy() : every || !lines[i].empty()) {
      out.Append(indent);
    }
    out.Append(lines[i]);
    RETURN_IF_ERROR(budget.ChargeText(out.size() > kMaxTextBytes ? out.size() : lines[i].size()));
  }
  return Value::Text(std::move(out));
}

absl::StatusOr<Value> MapFilter(const Value& value, const Arguments& args, Budget& budget) {
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(value, budget));
  const Value* attribute = nullptr;
  const Value* otherwise = nullptr;
  for (const auto& [name, argument] : args.keywords) {
    if (name == "attribute") attribute = &argument;
    if (name == "default") otherwise = &argument;
  }
  std::vector<Value> out;
  if (attribute != nullptr) {
    if (attribute->text() == nullptr || !args.positional.empty()) {
      return InvalidArgumentF("map: expected attribute='...'");
    }
    for (const Value& item : items) {
      ASSIGN_OR_RETURN(Value found, AttributePath(item, *attribute->text(), budget));
      if (found.is_undefined() && otherwise != nullptr) found = *otherwise;
      out.push_back(std::move(found));
    }
    return MakeList(std::move(out), budget);
  }
  if (args.positional.empty() || args.positional[0].text() == nullptr) {
    return InvalidArgumentF("map: expected the name of a filter or attribute='...'");
  }
  const std::string name = args.positional[0].text()->bytes();
  // A filter that maps could nest without end.
  if (!IsKnownFilter(name) || name == "map" || name.find("select") != std::string::npos ||
      name.find("reject") != std::string::npos) {
    return StatusF(absl::StatusCode::kUnimplemented, "map: filter '{}' is not supported", name);
  }
  Arguments rest{{args.positional.begin() + 1, args.positional.end()}, args.keywords};
  for (const Value& item : items) {
    RETURN_IF_ERROR(budget.Charge(1));
    ASSIGN_OR_RETURN(Value mapped, CallFilter(name, item, rest, budget));
    out.push_back(std::move(mapped));
  }
  return MakeList(std::move(out), budget);
}

// select, reject, selectattr, rejectattr.
absl::StatusOr<Value> Select(const Value& value, const Arguments& args, Budget& budget, bool keep,
                             bool by_attribute) {
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(value, budget));
  size_t next = 0;
  const JinjaText* attribute = nullptr;
  if (by_attribute) {
    if (!args.positional.empty()) attribute = args.positional[0].text();
    if (attribute == nullptr) return InvalidArgumentF("expected the name of an attribute");
    next = 1;
  }
  std::string test;
  if (args.positional.size() > next) {
    if (args.positional[next].text() != nullptr) test = args.positional[next].text()->bytes();
    if (!IsKnownTest(test)) {
      return StatusF(absl::StatusCode::kUnimplemented, "test '{}' is not supported", test);
    }
    ++next;
  }
  if (!args.keywords.empty()) return InvalidArgumentF("unexpected argument with a name");
  Arguments rest;
  if (next < args.positional.size()) {
    rest.positional.assign(args.positional.begin() + static_cast<ptrdiff_t>(next),
                           args.positional.end());
  }
  std::vector<Value> out;
  for (const Value& item : items) {
    RETURN_IF_ERROR(budget.Charge(1));
    Value tested = item;
    if (attribute != nullptr) {
      ASSIGN_OR_RETURN(tested, AttributePath(item, *attribute, budget));
    }
    bool yes = tested.Truthy();
    if (!test.empty()) {
      ASSIGN_OR_RETURN(yes, CallTest(test, tested, rest, budget));
    }
    if (yes == keep) out.push_back(item);
  }
  return MakeList(std::move(out), budget);
}

absl::StatusOr<Value> SelectFilter(const Value& value, const Arguments& args, Budget& budget) {
  return Select(value, args, budget, true, false);
}
absl::StatusOr<Value> RejectFilter(const Value& value, const Arguments& args, Budget& budget) {
  return Select(value, args, budget, false, false);
}
absl::StatusOr<Value> SelectAttrFilter(const Value& value, const Arguments& args, Budget& budget) {
  return Select(value, args, budget, true, true);
}
absl::StatusOr<Value> RejectAttrFilter(const Value& value, const Arguments& args, Budget& budget) {
  return Select(value, args, budget, false, true);
}

struct FilterRow {
  std::string_view name;
  Filter run;
};
constexpr FilterRow kFilters[] = {
    {"abs", AbsFilter},
    {"capitalize", CapitalizeFilter},
    {"count", LengthFilter},
    {"d", DefaultFilter},
    {"default", DefaultFilter},
    {"first", FirstFilter},
    {"float", FloatFilter},
    {"indent", IndentFilter},
    {"int", IntFilter},
    {"items", ItemsFilter},
    {"join", JoinFilter},
    {"last", LastFilter},
    {"length", LengthFilter},
    {"list", ListFilter},
    {"lower", LowerFilter},
    {"map", MapFilter},
    {"reject", RejectFilter},
    {"rejectattr", RejectAttrFilter},
    {"replace", ReplaceFilter},
    {"reverse", ReverseFilter},
    {"safe", SafeFilter},
    {"select", SelectFilter},
    {"selectattr", SelectAttrFilter},
    {"string", StringFilter},
    {"tojson", ToJsonFilter},
    {"trim", TrimFilter},
    {"upper", UpperFilter},
};

const FilterRow* FindFilter(std::string_view name) {
  const auto it = std::find_if(std::begin(kFilters), std::end(kFilters),
                               [&](const FilterRow& row) { return row.name == name; });
  return it == std::end(kFilters) ? nullptr : it;
}

bool IsSequence(const Value& v) {
  return v.list() != nullptr || v.dict() != nullptr || v.text() != nullptr || v.is_undefined();
}

struct PlainTest {
  std::string_view name;
  bool (*run)(const Value&);
};
constexpr PlainTest kPlainTests[] = {
    {"boolean", [](const Value& v) { return v.is_bool(); }},
    {"callable", [](const Value& v) { return v.macro() != nullptr || v.is_method(); }},
    {"defined", [](const Value& v) { return !v.is_undefined(); }},
    {"false", [](const Value& v) { return v.is_bool() && v.integer() == 0; }},
    {"float", [](const Value& v) { return v.is_float(); }},
    {"integer", [](const Value& v) { return v.is_integer() && !v.is_bool(); }},
    {"iterable", [](const Value& v) { return IsSequence(v) || v.loop() != nullptr; }},
    {"mapping", [](const Value& v) { return v.dict() != nullptr; }},
    {"none", [](const Value& v) { return v.is_none(); }},
    {"number", [](const Value& v) { return v.is_number(); }},
    {"sequence", IsSequence},
    {"string", [](const Value& v) { return v.text() != nullptr; }},
    {"true", [](const Value& v) { return v.is_bool() && v.integer() != 0; }},
    {"undefined", [](const Value& v) { return v.is_undefined(); }},
};

struct CompareTest {
  std::string_view name;
  std::string_view op;
};
constexpr CompareTest kCompareTests[] = {
    {"==", "=="}, {"eq", "=="}, {"equalto", "=="},    {"!=", "!="}, {"ne", "!="},
    {"<", "<"},   {"lt", "<"},  {"lessthan", "<"},    {"<=", "<="}, {"le", "<="},
    {">", ">"},   {"gt", ">"},  {"greaterthan", ">"}, {">=", ">="}, {"ge", ">="},
};
constexpr std::string_view kOtherTests[] = {"divisibleby", "even", "in", "lower", "odd", "upper"};

template <typename Table>
auto FindRow(const Table& table, std::string_view name) {
  const auto it = std::find_if(std::begin(table), std::end(table),
                               [&](const auto& row) { return row.name == name; });
  return it == std::end(table) ? nullptr : it;
}

constexpr std::string_view kFunctions[] = {"dict", "namespace", "raise_exception", "range"};

absl::StatusOr<Value> Range(const Arguments& args, Budget& budget) {
  RETURN_IF_ERROR(args.Check("range", {"start", "stop", "step"}, 1));
  Int bounds[3] = {0, 0, 1};
  for (size_t i = 0; i < args.positional.size(); ++i) {
    if (!args.positional[i].is_integer()) {
      return InvalidArgumentF("range: expected an integer, found {}",
                              args.positional[i].TypeName());
    }
    bounds[i] = args.positional[i].integer();
  }
  if (args.positional.size() == 1) std::swap(bounds[0], bounds[1]);
  if (bounds[2] == 0) return InvalidArgumentF("range: step cannot be zero");
  constexpr size_t kMaxRange = 100'000;
  std::vector<Value> items;
  for (Int i = bounds[0]; bounds[2] > 0 ? i < bounds[1] : i > bounds[1];) {
    if (items.size() == kMaxRange) {
      return InvalidArgumentF("range: more than {} numbers", kMaxRange);
    }
    items.push_back(Value::Integer(i));
    if (__builtin_add_overflow(i, bounds[2], &i)) break;
  }
  return MakeList(std::move(items), budget);
}

absl::StatusOr<Value> MakeNamespace(const Arguments& args) {
  auto ns = std::make_shared<Namespace>();
  if (args.positional.size() > 1 ||
      (!args.positional.empty() && args.positional[0].dict() == nullptr)) {
    return InvalidArgumentF("namespace: expected named arguments or a dict");
  }
  if (!args.positional.empty()) {
    for (const auto& [key, value] : args.positional[0].dict()->entries()) {
      ns->attributes.emplace_back(key.bytes(), value);
    }
  }
  for (const auto& [name, value] : args.keywords) {
    if (value.ns() != nullptr || value.loop() != nullptr) {
      return InvalidArgumentF("a {} cannot be put in a namespace", value.TypeName());
    }
    ns->attributes.emplace_back(std::string(name), value);
  }
  return Value::Of(std::move(ns));
}

}  // namespace

const Value* Arguments::Get(size_t position, std::string_view name) const {
  if (position < positional.size()) return &positional[position];
  for (const auto& keyword : keywords) {
    if (keyword.first == name) return &keyword.second;
  }
  return nullptr;
}

absl::Status Arguments::Check(std::string_view callee,
                              std::initializer_list<std::string_view> names,
                              size_t num_required) const {
  if (positional.size() > names.size()) {
    return InvalidArgumentF("{}: {} arguments, expected at most {}", callee, positional.size(),
                            names.size());
  }
  for (const auto& keyword : keywords) {
    const auto it = std::find(names.begin(), names.end(), keyword.first);
    if (it == names.end()) {
      return StatusF(absl::StatusCode::kUnimplemented, "{}: argument '{}' is not supported", callee,
                     keyword.first);
    }
    if (static_cast<size_t>(it - names.begin()) < positional.size()) {
      return InvalidArgumentF("{}: argument '{}' given twice", callee, keyword.first);
    }
  }
  for (size_t i = 0; i < num_required; ++i) {
    if (Get(i, names.begin()[i]) == nullptr) {
      return InvalidArgumentF("{}: argument '{}' is missing", callee, names.begin()[i]);
    }
  }
  return absl::OkStatus();
}

bool IsKnownFilter(std::string_view name) { return FindFilter(name) != nullptr; }

bool IsKnownTest(std::string_view name) {
  return FindRow(kPlainTests, name) != nullptr || FindRow(kCompareTests, name) != nullptr ||
         std::find(std::begin(kOtherTests), std::end(kOtherTests), name) != std::end(kOtherTests);
}

bool IsKnownFunction(std::string_view name) {
  return std::find(std::begin(kFunctions), std::end(kFunctions), name) != std::end(kFunctions);
}

absl::StatusOr<Value> CallFilter(std::string_view name, const Value& value, const Arguments& args,
                                 Budget& budget) {
  const FilterRow* row = FindFilter(name);
  if (row == nullptr) {
    return StatusF(absl::StatusCode::kUnimplemented, "filter '{}' is not supported", name);
  }
  if (value.ns() != nullptr || value.loop() != nullptr) {
    return InvalidArgumentF("filter '{}' on a {}", name, value.TypeName());
  }
  return row->run(value, args, budget);
}

absl::StatusOr<bool> CallTest(std::string_view name, const Value& value, const Arguments& args,
                              Budget& budget) {
  if (const PlainTest* test = FindRow(kPlainTests, name)) {
    RETURN_IF_ERROR(args.Check(name, {}, 0));
    return test->run(value);
  }
  if (const CompareTest* test = FindRow(kCompareTests, name)) {
    RETURN_IF_ERROR(args.Check(name, {"other"}, 1));
    return Compare(test->op, value, *args.Get(0, "other"), budget);
  }
  if (name == "in") {
    RETURN_IF_ERROR(args.Check(name, {"seq"}, 1));
    return Contains(*args.Get(0, "seq"), value, budget);
  }
  if (name == "lower" || name == "upper") {
    RETURN_IF_ERROR(args.Check(name, {}, 0));
    ASSIGN_OR_RETURN(const JinjaText text, ToText(value, budget));
    RETURN_IF_ERROR(budget.ChargeText(text.size()));
    const JinjaText upper = MapCase(text, CaseMapping::kUpper);
    const JinjaText lower = MapCase(text, CaseMapping::kLower);
    // As str.isupper: there is a letter with case, and every one is upper case.
    if (upper.bytes() == lower.bytes()) return false;
    return text.bytes() == (name == "upper" ? upper : lower).bytes();
  }
  RETURN_IF_ERROR(args.Check(name, {"num"}, name == "divisibleby" ? 1 : 0));
  const Value divisor = name == "divisibleby" ? *args.Get(0, "num") : Value::Integer(2);
  ASSIGN_OR_RETURN(const Value remainder, Arithmetic("%", value, divisor, budget));
  return Equal(remainder, Value::Integer(name == "odd" ? 1 : 0), budget);
}

absl::StatusOr<Value> CallFunction(std::string_view name, const Arguments& args, Budget& budget) {
  if (name == "range") return Range(args, budget);
  if (name == "namespace") return MakeNamespace(args);
  if (name == "dict") {
    if (!args.positional.empty()) return InvalidArgumentF("dict: expected named arguments");
    std::vector<std::pair<JinjaText, Value>> entries;
    for (const auto& [key, value] : args.keywords) {
      entries.emplace_back(JinjaText(std::string(key), false), value);
    }
    return MakeDict(std::move(entries), budget);
  }
  if (name == "raise_exception") {
    RETURN_IF_ERROR(args.Check(name, {"message"}, 1));
    ASSIGN_OR_RETURN(const JinjaText message, ToText(*args.Get(0, "message"), budget));
    return InvalidArgumentF("{}", message.bytes().substr(0, 1000));
  }
  return StatusF(absl::StatusCode::kUnimplemented, "function '{}' is not supported", name);
}

}  // namespace banyan::jinja
