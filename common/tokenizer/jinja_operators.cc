#include "common/tokenizer/jinja_operators.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/tokenizer/jinja_strings.h"

namespace banyan::jinja {
namespace {

// Attributes Python's own types have: as attributes they win over keys of a dict.
constexpr std::string_view kDictMethods[] = {"clear",      "copy",   "fromkeys", "get",
                                             "items",      "keys",   "pop",      "popitem",
                                             "setdefault", "update", "values"};
constexpr std::string_view kListMethods[] = {"append", "clear",   "copy",   "count",
                                             "extend", "index",   "insert", "pop",
                                             "remove", "reverse", "sort"};
constexpr std::string_view kTupleMethods[] = {"count", "index"};
constexpr std::string_view kTextMethods[] = {
    "capitalize",   "casefold",    "center",    "count",      "encode",       "endswith",
    "expandtabs",   "find",        "format",    "format_map", "index",        "isalnum",
    "isalpha",      "isascii",     "isdecimal", "isdigit",    "isidentifier", "islower",
    "isnumeric",    "isprintable", "isspace",   "istitle",    "isupper",      "join",
    "ljust",        "lower",       "lstrip",    "maketrans",  "partition",    "removeprefix",
    "removesuffix", "replace",     "rfind",     "rindex",     "rjust",        "rpartition",
    "rsplit",       "rstrip",      "split",     "splitlines", "startswith",   "strip",
    "swapcase",     "title",       "translate", "upper",      "zfill"};

template <size_t N>
bool IsIn(const std::string_view (&names)[N], std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

bool HasMethod(const Value& object, std::string_view name) {
  if (object.dict() != nullptr) return IsIn(kDictMethods, name);
  if (object.text() != nullptr) return IsIn(kTextMethods, name);
  if (const List* list = object.list()) {
    return list->is_tuple ? IsIn(kTupleMethods, name) : IsIn(kListMethods, name);
  }
  return false;
}

absl::StatusOr<Value> LoopAttribute(const Loop& loop, std::string_view name) {
  const auto size = static_cast<Int>(loop.items->size());
  const auto index0 = static_cast<Int>(loop.index0);
  if (name == "index") return Value::Integer(index0 + 1);
  if (name == "index0") return Value::Integer(index0);
  if (name == "revindex") return Value::Integer(size - index0);
  if (name == "revindex0") return Value::Integer(size - index0 - 1);
  if (name == "first") return Value::Bool(index0 == 0);
  if (name == "last") return Value::Bool(index0 == size - 1);
  if (name == "length") return Value::Integer(size);
  // Depth counts recursive loops only, which there are none of.
  if (name == "depth") return Value::Integer(1);
  if (name == "depth0") return Value::Integer(0);
  if (name == "previtem") {
    return index0 == 0 ? Value(Undefined{name}) : (*loop.items)[loop.index0 - 1];
  }
  if (name == "nextitem") {
    return index0 == size - 1 ? Value(Undefined{name}) : (*loop.items)[loop.index0 + 1];
  }
  if (name == "cycle" || name == "changed") {
    return StatusF(absl::StatusCode::kUnimplemented, "loop.{} is not supported", name);
  }
  return Value(Undefined{name});
}

// Index of a sequence, negative from the end; -1 when out of range.
int64_t ResolveIndex(Int index, size_t size) {
  const auto length = static_cast<Int>(size);
  if (index < 0) index += length;
  return index < 0 || index >= length ? -1 : static_cast<int64_t>(index);
}

absl::StatusOr<Int> SliceBound(const Value& value, Int otherwise) {
  if (value.is_none()) return otherwise;
  if (!value.is_integer()) {
    return InvalidArgumentF("slice indices must be integers or none, not {}", value.TypeName());
  }
  return value.integer();
}

absl::Status OperandError(std::string_view op, const Value& a, const Value& b) {
  if (a.is_undefined()) return UndefinedError(a);
  if (b.is_undefined()) return UndefinedError(b);
  if (op == "+" && a.text() != nullptr) {
    return InvalidArgumentF("can only concatenate str (not \"{}\") to str", b.TypeName());
  }
  return InvalidArgumentF("unsupported operands for {}: '{}' and '{}'", op, a.TypeName(),
                          b.TypeName());
}

absl::StatusOr<Value> IntegerArithmetic(std::string_view op, Int a, Int b) {
  Int result = 0;
  bool overflow = false;
  if (op == "+") {
    overflow = __builtin_add_overflow(a, b, &result);
  } else if (op == "-") {
    overflow = __builtin_sub_overflow(a, b, &result);
  } else if (op == "*") {
    overflow = __builtin_mul_overflow(a, b, &result);
  } else {
    if (b == 0) return InvalidArgumentF("division by zero");
    if (op == "/") return Value::Float(static_cast<double>(a) / static_cast<double>(b));
    if (b == -1) {
      overflow = op == "//" && __builtin_sub_overflow(Int{0}, a, &result);
    } else {
      // Python rounds towards minus infinity.
      const Int remainder = a % b;
      const bool adjust = remainder != 0 && (remainder < 0) != (b < 0);
      result = op == "//" ? a / b - (adjust ? 1 : 0) : remainder + (adjust ? b : 0);
    }
  }
  if (overflow) return InvalidArgumentF("integer overflow in {}", op);
  return Value::Integer(result);
}

absl::StatusOr<Value> FloatArithmetic(std::string_view op, double a, double b) {
  if (op == "+") return Value::Float(a + b);
  if (op == "-") return Value::Float(a - b);
  if (op == "*") return Value::Float(a * b);
  if (b == 0) return InvalidArgumentF("division by zero");
  if (op == "/") return Value::Float(a / b);
  if (op == "//") return Value::Float(std::floor(a / b));
  const double remainder = std::fmod(a, b);
  const bool adjust = remainder != 0 && (remainder < 0) != (b < 0);
  return Value::Float(adjust ? remainder + b : remainder);
}

absl::StatusOr<Value> Repeat(const Value& value, Int times, Budget& budget) {
  const Int count = std::max<Int>(times, 0);
  if (const JinjaText* text = value.text()) {
    if (text->empty() || count == 0) return Value::Text("", false);
    const Int size = count > static_cast<Int>(kMaxTextBytes)
                         ? static_cast<Int>(kMaxTextBytes) + 1
                         : count * static_cast<Int>(text->size());
    RETURN_IF_ERROR(budget.ChargeText(static_cast<size_t>(size)));
    JinjaText out;
    for (Int i = 0; i < count; ++i) out.Append(*text);
    return Value::Text(std::move(out));
  }
  const List& list = *value.list();
  const auto size = static_cast<Int>(list.items.size());
  constexpr Int kMany = 100'000'000;
  if (size > 0) {
    RETURN_IF_ERROR(
        budget.Charge(static_cast<int64_t>(std::min<Int>(count, kMany) * std::min(size, kMany))));
  }
  std::vector<Value> items;
  for (Int i = 0; i < count && size > 0; ++i) {
    items.insert(items.end(), list.items.begin(), list.items.end());
  }
  return MakeList(std::move(items), budget, list.is_tuple);
}

}  // namespace

absl::Status UndefinedError(const Value& value) {
  const Undefined* undefined = value.undefined();
  return InvalidArgumentF("'{}' is undefined", undefined == nullptr ? "?" : undefined->name);
}

absl::StatusOr<Value> MakeList(std::vector<Value> items, Budget& budget, bool tuple) {
  RETURN_IF_ERROR(budget.Charge(1 + static_cast<int64_t>(items.size())));
  for (const Value& item : items) {
    if (item.ns() != nullptr || item.loop() != nullptr) {
      return InvalidArgumentF("a {} cannot be put in a list", item.TypeName());
    }
  }
  auto list = std::make_shared<const List>(std::move(items), tuple);
  if (list->depth > kMaxValueDepth) {
    return InvalidArgumentF("lists nest deeper than {} levels", kMaxValueDepth);
  }
  return Value::Of(std::move(list));
}

absl::StatusOr<Value> MakeDict(std::vector<std::pair<JinjaText, Value>> entries, Budget& budget) {
  for (const auto& [key, item] : entries) {
    RETURN_IF_ERROR(budget.ChargeText(key.size()));
    if (item.ns() != nullptr || item.loop() != nullptr) {
      return InvalidArgumentF("a {} cannot be put in a dict", item.TypeName());
    }
  }
  auto dict = std::make_shared<const Dict>(std::move(entries));
  if (dict->depth() > kMaxValueDepth) {
    return InvalidArgumentF("dicts nest deeper than {} levels", kMaxValueDepth);
  }
  return Value::Of(std::move(dict));
}

absl::StatusOr<Value> GetAttribute(const Value& object, std::string_view name, Budget& budget) {
  RETURN_IF_ERROR(budget.Charge(1));
  if (object.is_undefined()) return UndefinedError(object);
  if (HasMethod(object, name)) return Value(Method{name});
  if (const Dict* dict = object.dict()) {
    const Value* found = dict->Find(name);
    return found != nullptr ? *found : Value(Undefined{name});
  }
  if (const Namespace* ns = object.ns()) {
    for (const auto& attribute : ns->attributes) {
      if (attribute.first == name) return attribute.second;
    }
    return Value(Undefined{name});
  }
  if (const Loop* loop = object.loop()) return LoopAttribute(*loop, name);
  return Value(Undefined{name});
}

absl::StatusOr<Value> GetItem(const Value& object, const Value& key, Budget& budget) {
  RETURN_IF_ERROR(budget.Charge(1));
  if (object.is_undefined()) return UndefinedError(object);
  constexpr std::string_view kItem = "item";
  const JinjaText* name = key.text();
  if (name != nullptr) {
    if (const Dict* dict = object.dict()) {
      if (const Value* found = dict->Find(name->bytes())) return *found;
    }
    if (HasMethod(object, name->bytes())) return Value(Method{kItem});
    if (object.ns() != nullptr || object.loop() != nullptr) {
      return InvalidArgumentF("attributes of a {} are read with a dot", object.TypeName());
    }
    return Value(Undefined{kItem});
  }
  if (!key.is_integer()) return Value(Undefined{kItem});
  if (const List* list = object.list()) {
    const int64_t i = ResolveIndex(key.integer(), list->items.size());
    return i < 0 ? Value(Undefined{kItem}) : list->items[i];
  }
  if (const JinjaText* text = object.text()) {
    RETURN_IF_ERROR(budget.ChargeText(text->size()));
    const std::vector<size_t> offsets = CharacterOffsets(text->bytes());
    const int64_t i = ResolveIndex(key.integer(), offsets.size() - 1);
    if (i < 0) return Value(Undefined{kItem});
    return Value::Text(text->Substr(offsets[i], offsets[i + 1]));
  }
  return Value(Undefined{kItem});
}

absl::StatusOr<Value> GetSlice(const Value& object, const Value& start, const Value& stop,
                               const Value& step, Budget& budget) {
  if (object.is_undefined()) return UndefinedError(object);
  const List* list = object.list();
  const JinjaText* text = object.text();
  if (list == nullptr && text == nullptr) {
    return InvalidArgumentF("a {} cannot be sliced", object.TypeName());
  }
  std::vector<size_t> offsets;
  if (text != nullptr) {
    RETURN_IF_ERROR(budget.ChargeText(text->size()));
    offsets = CharacterOffsets(text->bytes());
  }
  const Int size = static_cast<Int>(text != nullptr ? offsets.size() - 1 : list->items.size());
  ASSIGN_OR_RETURN(Int by, SliceBound(step, 1));
  if (by == 0) return InvalidArgumentF("slice step cannot be zero");
  by = std::clamp<Int>(by, -size - 1, size + 1);
  // Bounds as Python clips them.
  const Int lowest = by > 0 ? 0 : -1;
  const Int highest = by > 0 ? size : size - 1;
  const auto clip = [&](Int bound) {
    if (bound < 0) bound = std::max<Int>(bound, -size - 1) + size;
    return std::clamp(bound, lowest, highest);
  };
  ASSIGN_OR_RETURN(Int begin, SliceBound(start, by > 0 ? 0 : size));
  ASSIGN_OR_RETURN(Int end, SliceBound(stop, by > 0 ? size : -size - 1));
  begin = clip(begin);
  end = clip(end);
  if (text != nullptr && by == 1) {
    return Value::Text(begin < end ? text->Substr(offsets[begin], offsets[end]) : JinjaText());
  }
  JinjaText characters;
  std::vector<Value> items;
  for (Int i = begin; by > 0 ? i < end : i > end; i += by) {
    if (text != nullptr) {
      characters.AppendPart(*text, offsets[i], offsets[i + 1]);
    } else {
      items.push_back(list->items[i]);
    }
  }
  if (text != nullptr) return Value::Text(std::move(characters));
  return MakeList(std::move(items), budget, list->is_tuple);
}

absl::StatusOr<std::vector<Value>> Iterate(const Value& value, Budget& budget) {
  std::vector<Value> items;
  if (const List* list = value.list()) {
    RETURN_IF_ERROR(budget.Charge(static_cast<int64_t>(list->items.size())));
    items = list->items;
  } else if (const Dict* dict = value.dict()) {
    for (const auto& entry : dict->entries()) {
      RETURN_IF_ERROR(budget.ChargeText(entry.first.size()));
      items.push_back(Value::Text(entry.first));
    }
  } else if (const JinjaText* text = value.text()) {
    const std::vector<size_t> offsets = CharacterOffsets(text->bytes());
    RETURN_IF_ERROR(budget.Charge(static_cast<int64_t>(offsets.size())));
    for (size_t i = 0; i + 1 < offsets.size(); ++i) {
      items.push_back(Value::Text(text->Substr(offsets[i], offsets[i + 1])));
    }
  } else if (!value.is_undefined()) {
    return InvalidArgumentF("'{}' object is not iterable", value.TypeName());
  }
  return items;
}

absl::StatusOr<int64_t> Length(const Value& value, Budget& budget) {
  if (const List* list = value.list()) return static_cast<int64_t>(list->items.size());
  if (const Dict* dict = value.dict()) return static_cast<int64_t>(dict->entries().size());
  if (const JinjaText* text = value.text()) {
    RETURN_IF_ERROR(budget.ChargeText(text->size()));
    return static_cast<int64_t>(CountCharacters(text->bytes()));
  }
  if (value.is_undefined()) return 0;
  return InvalidArgumentF("object of type '{}' has no len()", value.TypeName());
}

absl::StatusOr<bool> Contains(const Value& container, const Value& item, Budget& budget) {
  if (const JinjaText* text = container.text()) {
    if (item.text() == nullptr) {
      if (item.is_undefined()) return UndefinedError(item);
      return InvalidArgumentF("'in <string>' requires string as left operand, not {}",
                              item.TypeName());
    }
    RETURN_IF_ERROR(budget.ChargeText(text->size()));
    return FindText(text->bytes(), item.text()->bytes(), 0) != std::string_view::npos;
  }
  if (const Dict* dict = container.dict()) {
    return item.text() != nullptr && dict->Find(item.text()->bytes()) != nullptr;
  }
  if (const List* list = container.list()) {
    for (const Value& one : list->items) {
      ASSIGN_OR_RETURN(const bool same, Equal(one, item, budget));
      if (same) return true;
    }
    return false;
  }
  if (container.is_undefined()) return false;
  return InvalidArgumentF("argument of type '{}' is not iterable", container.TypeName());
}

absl::StatusOr<Value> Arithmetic(std::string_view op, const Value& a, const Value& b,
                                 Budget& budget) {
  if (a.is_integer() && b.is_integer()) return IntegerArithmetic(op, a.integer(), b.integer());
  if (a.is_number() && b.is_number()) return FloatArithmetic(op, a.number(), b.number());
  if (op == "+" && a.text() != nullptr && b.text() != nullptr) {
    RETURN_IF_ERROR(budget.ChargeText(a.text()->size() + b.text()->size()));
    JinjaText out = *a.text();
    out.Append(*b.text());
    return Value::Text(std::move(out));
  }
  if (op == "+" && a.list() != nullptr && b.list() != nullptr &&
      a.list()->is_tuple == b.list()->is_tuple) {
    RETURN_IF_ERROR(
        budget.Charge(static_cast<int64_t>(a.list()->items.size() + b.list()->items.size())));
    std::vector<Value> items = a.list()->items;
    items.insert(items.end(), b.list()->items.begin(), b.list()->items.end());
    return MakeList(std::move(items), budget, a.list()->is_tuple);
  }
  const auto repeats = [](const Value& value, const Value& times) {
    return (value.text() != nullptr || value.list() != nullptr) && times.is_integer();
  };
  if (op == "*" && repeats(a, b)) return Repeat(a, b.integer(), budget);
  if (op == "*" && repeats(b, a)) return Repeat(b, a.integer(), budget);
  if (op == "%" && a.text() != nullptr) {
    return StatusF(absl::StatusCode::kUnimplemented, "formatting with % is not supported");
  }
  return OperandError(op, a, b);
}

absl::StatusOr<Value> Negate(const Value& value) {
  if (value.is_float()) return Value::Float(-value.number());
  if (value.is_integer()) return IntegerArithmetic("-", 0, value.integer());
  if (value.is_undefined()) return UndefinedError(value);
  return InvalidArgumentF("bad operand type for unary -: '{}'", value.TypeName());
}

absl::StatusOr<bool> Compare(std::string_view op, const Value& a, const Value& b, Budget& budget) {
  if (op == "==" || op == "!=") {
    ASSIGN_OR_RETURN(const bool same, Equal(a, b, budget));
    return same == (op == "==");
  }
  int32_t order = 0;
  if (a.is_integer() && b.is_integer()) {
    order = a.integer() < b.integer() ? -1 : a.integer() > b.integer() ? 1 : 0;
  } else if (a.is_number() && b.is_number()) {
    const double x = a.number();
    const double y = b.number();
    if (std::isnan(x) || std::isnan(y)) return false;
    order = x < y ? -1 : x > y ? 1 : 0;
  } else if (a.text() != nullptr && b.text() != nullptr) {
    RETURN_IF_ERROR(budget.ChargeText(std::min(a.text()->size(), b.text()->size())));
    // Bytes of UTF-8 order as code points do.
    const int compared = a.text()->bytes().compare(b.text()->bytes());
    order = compared < 0 ? -1 : compared > 0 ? 1 : 0;
  } else {
    if (a.is_undefined()) return UndefinedError(a);
    if (b.is_undefined()) return UndefinedError(b);
    return InvalidArgumentF("'{}' not supported between '{}' and '{}'", op, a.TypeName(),
                            b.TypeName());
  }
  if (op == "<") return order < 0;
  if (op == "<=") return order <= 0;
  if (op == ">") return order > 0;
  return order >= 0;
}

}  // namespace banyan::jinja
