// Methods of strings, dicts and lists.
#include <algorithm>
#include <iterator>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/tokenizer/jinja_builtins.h"
#include "common/tokenizer/jinja_format.h"
#include "common/tokenizer/jinja_operators.h"
#include "common/tokenizer/jinja_strings.h"

namespace banyan::jinja {
namespace {

constexpr std::string_view kMethods[] = {
    "capitalize",   "count",        "endswith", "find",   "get",   "index",
    "isdigit",      "items",        "join",     "keys",   "lower", "lstrip",
    "removeprefix", "removesuffix", "replace",  "rstrip", "split", "splitlines",
    "startswith",   "strip",        "upper",    "values"};

absl::StatusOr<std::string_view> TextArgument(std::string_view method, const Value* value) {
  if (value == nullptr || value->text() == nullptr) {
    if (value != nullptr && value->is_undefined()) return UndefinedError(*value);
    return InvalidArgumentF("{}: expected a string, found {}", method,
                            value == nullptr ? "nothing" : value->TypeName());
  }
  return std::string_view(value->text()->bytes());
}

// An optional count: absent or negative is no limit (-1).
absl::StatusOr<int64_t> CountArgument(std::string_view method, const Value* value) {
  if (value == nullptr) return -1;
  if (!value->is_integer()) {
    return InvalidArgumentF("{}: expected an integer, found {}", method, value->TypeName());
  }
  return static_cast<int64_t>(std::clamp<Int>(value->integer(), -1, INT64_MAX));
}

absl::StatusOr<Value> Texts(std::vector<JinjaText> parts, Budget& budget) {
  std::vector<Value> items;
  items.reserve(parts.size());
  for (JinjaText& part : parts) items.push_back(Value::Text(std::move(part)));
  return MakeList(std::move(items), budget);
}

absl::StatusOr<Value> HasAffix(std::string_view name, std::string_view text,
                               const Arguments& args) {
  RETURN_IF_ERROR(args.Check(name, {"prefix"}, 1));
  const auto matches = [&](std::string_view affix) {
    if (affix.size() > text.size()) return false;
    return name == "startswith" ? text.substr(0, affix.size()) == affix
                                : text.substr(text.size() - affix.size()) == affix;
  };
  const Value& argument = *args.Get(0, "prefix");
  if (const List* list = argument.list(); list != nullptr && list->is_tuple) {
    bool any = false;
    for (const Value& item : list->items) {
      ASSIGN_OR_RETURN(const std::string_view affix, TextArgument(name, &item));
      any = any || matches(affix);
    }
    return Value::Bool(any);
  }
  ASSIGN_OR_RETURN(const std::string_view affix, TextArgument(name, &argument));
  return Value::Bool(matches(affix));
}

absl::StatusOr<Value> StripMethod(std::string_view name, const JinjaText& text,
                                  const Arguments& args) {
  RETURN_IF_ERROR(args.Check(name, {"chars"}, 0));
  const bool left = name != "rstrip";
  const bool right = name != "lstrip";
  const Value* chars = args.Get(0, "chars");
  if (chars == nullptr || chars->is_none()) {
    return Value::Text(Strip(text, nullptr, left, right));
  }
  ASSIGN_OR_RETURN(const std::string_view set, TextArgument(name, chars));
  // Each character stripped looks through the whole set.
  if (set.size() > 1024) return InvalidArgumentF("{}: more than 1024 bytes of characters", name);
  return Value::Text(Strip(text, &set, left, right));
}

absl::StatusOr<Value> SplitMethod(const JinjaText& text, const Arguments& args, Budget& budget) {
  RETURN_IF_ERROR(args.Check("split", {"sep", "maxsplit"}, 0));
  ASSIGN_OR_RETURN(const int64_t max_splits, CountArgument("split", args.Get(1, "maxsplit")));
  const Value* separator = args.Get(0, "sep");
  if (separator == nullptr || separator->is_none()) {
    return Texts(SplitWhitespace(text, max_splits), budget);
  }
  ASSIGN_OR_RETURN(const std::string_view sep, TextArgument("split", separator));
  if (sep.empty()) return InvalidArgumentF("split: empty separator");
  return Texts(Split(text, sep, max_splits), budget);
}

absl::StatusOr<Value> ReplaceMethod(const JinjaText& text, const Arguments& args, Budget& budget) {
  RETURN_IF_ERROR(args.Check("replace", {"old", "new", "count"}, 2));
  const Value* new_value = args.Get(1, "new");
  ASSIGN_OR_RETURN(const std::string_view old_text, TextArgument("replace", args.Get(0, "old")));
  RETURN_IF_ERROR(TextArgument("replace", new_value).status());
  ASSIGN_OR_RETURN(const int64_t count, CountArgument("replace", args.Get(2, "count")));
  if (old_text.empty()) {
    return StatusF(absl::StatusCode::kUnimplemented, "replacing the empty string is not supported");
  }
  size_t found = 0;
  for (size_t pos = FindText(text.bytes(), old_text, 0); pos != std::string_view::npos;
       pos = FindText(text.bytes(), old_text, pos + old_text.size())) {
    ++found;
  }
  const size_t new_size = new_value->text()->size();
  // At most 2^24 times at most 2^24.
  RETURN_IF_ERROR(budget.ChargeText(text.size() + found * new_size));
  return Value::Text(Replace(text, old_text, *new_value->text(), count));
}

absl::StatusOr<Value> JoinMethod(const JinjaText& separator, const Arguments& args,
                                 Budget& budget) {
  RETURN_IF_ERROR(args.Check("join", {"iterable"}, 1));
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(*args.Get(0, "iterable"), budget));
  JinjaText out;
  for (size_t i = 0; i < items.size(); ++i) {
    RETURN_IF_ERROR(TextArgument("join", &items[i]).status());
    if (i > 0) out.Append(separator);
    out.Append(*items[i].text());
    RETURN_IF_ERROR(
        budget.ChargeText(out.size() > kMaxTextBytes ? out.size() : items[i].text()->size()));
  }
  return Value::Text(std::move(out));
}

absl::StatusOr<Value> FindMethod(std::string_view name, const JinjaText& text,
                                 const Arguments& args) {
  RETURN_IF_ERROR(args.Check(name, {"sub"}, 1));
  ASSIGN_OR_RETURN(const std::string_view sub, TextArgument(name, args.Get(0, "sub")));
  const std::string_view bytes = text.bytes();
  if (name == "count") {
    if (sub.empty()) return Value::Integer(static_cast<Int>(CountCharacters(bytes)) + 1);
    Int count = 0;
    for (size_t pos = FindText(bytes, sub, 0); pos != std::string_view::npos;
         pos = FindText(bytes, sub, pos + sub.size())) {
      ++count;
    }
    return Value::Integer(count);
  }
  const size_t found = FindText(bytes, sub, 0);
  if (found == std::string_view::npos) {
    if (name == "index") return InvalidArgumentF("index: substring not found");
    return Value::Integer(-1);
  }
  return Value::Integer(static_cast<Int>(CountCharacters(bytes.substr(0, found))));
}

absl::StatusOr<Value> TextMethod(std::string_view name, const JinjaText& text,
                                 const Arguments& args, Budget& budget) {
  RETURN_IF_ERROR(budget.ChargeText(text.size()));
  if (name == "startswith" || name == "endswith") return HasAffix(name, text.bytes(), args);
  if (name == "strip" || name == "lstrip" || name == "rstrip") return StripMethod(name, text, args);
  if (name == "split") return SplitMethod(text, args, budget);
  if (name == "replace") return ReplaceMethod(text, args, budget);
  if (name == "join") return JoinMethod(text, args, budget);
  if (name == "find" || name == "index" || name == "count") return FindMethod(name, text, args);
  if (name == "removeprefix" || name == "removesuffix") {
    RETURN_IF_ERROR(args.Check(name, {"affix"}, 1));
    ASSIGN_OR_RETURN(const std::string_view affix, TextArgument(name, args.Get(0, "affix")));
    const std::string_view bytes = text.bytes();
    if (name == "removeprefix" && bytes.substr(0, affix.size()) == affix) {
      return Value::Text(text.Substr(affix.size(), text.size()));
    }
    if (name == "removesuffix" && affix.size() <= bytes.size() &&
        bytes.substr(bytes.size() - affix.size()) == affix) {
      return Value::Text(text.Substr(0, text.size() - affix.size()));
    }
    return Value::Text(text);
  }
  RETURN_IF_ERROR(args.Check(name, {}, 0));
  if (name == "splitlines") return Texts(SplitLines(text), budget);
  if (name == "upper") return Value::Text(MapCase(text, CaseMapping::kUpper));
  if (name == "lower") return Value::Text(MapCase(text, CaseMapping::kLower));
  if (name == "capitalize") return Value::Text(MapCase(text, CaseMapping::kCapitalize));
  if (name == "isdigit") {
    const std::string& bytes = text.bytes();
    const auto digit = [](char c) { return c >= '0' && c <= '9'; };
    return Value::Bool(!bytes.empty() && std::all_of(bytes.begin(), bytes.end(), digit));
  }
  return InvalidArgumentF("'str object' has no attribute '{}'", name);
}

absl::StatusOr<Value> DictMethod(std::string_view name, const Dict& dict, const Arguments& args,
                                 Budget& budget) {
  if (name == "get") {
    RETURN_IF_ERROR(args.Check(name, {"key", "default"}, 1));
    const JinjaText* key = args.Get(0, "key")->text();
    if (const Value* found = key == nullptr ? nullptr : dict.Find(key->bytes())) return *found;
    const Value* otherwise = args.Get(1, "default");
    return otherwise == nullptr ? Value(None{}) : *otherwise;
  }
  if (name != "items" && name != "keys" && name != "values") {
    return InvalidArgumentF("'dict object' has no attribute '{}'", name);
  }
  RETURN_IF_ERROR(args.Check(name, {}, 0));
  std::vector<Value> items;
  for (const auto& [key, value] : dict.entries()) {
    RETURN_IF_ERROR(budget.ChargeText(key.size()));
    if (name == "values") {
      items.push_back(value);
    } else if (name == "keys") {
      items.push_back(Value::Text(key));
    } else {
      ASSIGN_OR_RETURN(Value pair, MakeList({Value::Text(key), value}, budget, /*tuple=*/true));
      items.push_back(std::move(pair));
    }
  }
  return MakeList(std::move(items), budget);
}

}  // namespace

bool IsKnownMethod(std::string_view name) {
  return std::find(std::begin(kMethods), std::end(kMethods), name) != std::end(kMethods);
}

absl::StatusOr<Value> CallMethod(std::string_view name, const Value& object, const Arguments& args,
                                 Budget& budget) {
  if (object.is_undefined()) return UndefinedError(object);
  if (const JinjaText* text = object.text()) return TextMethod(name, *text, args, budget);
  if (const Dict* dict = object.dict()) return DictMethod(name, *dict, args, budget);
  const List* list = object.list();
  if (list != nullptr && (name == "count" || name == "index")) {
    RETURN_IF_ERROR(args.Check(name, {"value"}, 1));
    Int count = 0;
    for (size_t i = 0; i < list->items.size(); ++i) {
      ASSIGN_OR_RETURN(const bool same, Equal(list->items[i], *args.Get(0, "value"), budget));
      if (same && name == "index") return Value::Integer(static_cast<Int>(i));
      count += same ? 1 : 0;
    }
    if (name == "index") return InvalidArgumentF("index: the value is not in the list");
    return Value::Integer(count);
  }
  return InvalidArgumentF("'{} object' has no attribute '{}'", object.TypeName(), name);
}

}  // namespace banyan::jinja
