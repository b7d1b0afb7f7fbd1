#include "common/tokenizer/jinja_value.h"

#include <algorithm>

#include "common/base/status_macros.h"

namespace banyan::jinja {
namespace {

constexpr size_t kLinearKeys = 8;

}  // namespace

bool Value::Truthy() const {
  if (is_undefined() || is_none()) return false;
  if (is_integer()) return integer() != 0;
  if (is_float()) return number() != 0;
  if (const JinjaText* t = text()) return !t->empty();
  if (const List* l = list()) return !l->items.empty();
  if (const Dict* d = dict()) return !d->entries().empty();
  return true;
}

int32_t Value::depth() const {
  if (const List* l = list()) return l->depth;
  if (const Dict* d = dict()) return d->depth();
  return 0;
}

std::string_view Value::TypeName() const {
  if (is_undefined()) return "Undefined";
  if (is_none()) return "NoneType";
  if (is_bool()) return "bool";
  if (is_integer()) return "int";
  if (is_float()) return "float";
  if (text() != nullptr) return "str";
  if (const List* l = list()) return l->is_tuple ? "tuple" : "list";
  if (dict() != nullptr) return "dict";
  if (ns() != nullptr) return "Namespace";
  if (loop() != nullptr) return "LoopContext";
  return macro() != nullptr ? "Macro" : "method";
}

List::List(std::vector<Value> values, bool tuple)
    : items(std::move(values)), is_tuple(tuple), depth(1) {
  for (const Value& item : items) depth = std::max(depth, item.depth() + 1);
}

Dict::Dict(std::vector<std::pair<JinjaText, Value>> entries) : depth_(1) {
  if (entries.size() > kLinearKeys) {
    entries_.reserve(entries.size());  // the index points into it
    for (auto& entry : entries) {
      const auto it = index_.find(entry.first.bytes());
      if (it != index_.end()) {
        entries_[it->second].second = std::move(entry.second);
        continue;
      }
      entries_.push_back(std::move(entry));
      index_.emplace(entries_.back().first.bytes(), entries_.size() - 1);
    }
  } else {
    for (auto& entry : entries) {
      const auto same = [&](const auto& e) { return e.first.bytes() == entry.first.bytes(); };
      const auto it = std::find_if(entries_.begin(), entries_.end(), same);
      if (it != entries_.end()) {
        it->second = std::move(entry.second);
      } else {
        entries_.push_back(std::move(entry));
      }
    }
  }
  for (const auto& entry : entries_) depth_ = std::max(depth_, entry.second.depth() + 1);
}

const Value* Dict::Find(std::string_view key) const {
  if (!index_.empty()) {
    const auto it = index_.find(key);
    return it == index_.end() ? nullptr : &entries_[it->second].second;
  }
  for (const auto& entry : entries_) {
    if (entry.first.bytes() == key) return &entry.second;
  }
  return nullptr;
}

absl::StatusOr<bool> Equal(const Value& a, const Value& b, Budget& budget) {
  // Lists can share parts, so that a small one is exponentially long to walk: dear steps.
  RETURN_IF_ERROR(budget.Charge(4));
  if (a.is_integer() && b.is_integer()) return a.integer() == b.integer();
  if (a.is_number() && b.is_number()) return a.number() == b.number();
  if (a.text() != nullptr && b.text() != nullptr) {
    RETURN_IF_ERROR(budget.ChargeText(std::min(a.text()->size(), b.text()->size())));
    return a.text()->bytes() == b.text()->bytes();
  }
  if (a.is_none() || a.is_undefined()) {
    return (a.is_none() && b.is_none()) || (a.is_undefined() && b.is_undefined());
  }
  if (const List* x = a.list(), *y = b.list(); x != nullptr && y != nullptr) {
    if (x == y) return true;
    if (x->is_tuple != y->is_tuple || x->items.size() != y->items.size()) return false;
    for (size_t i = 0; i < x->items.size(); ++i) {
      ASSIGN_OR_RETURN(const bool same, Equal(x->items[i], y->items[i], budget));
      if (!same) return false;
    }
    return true;
  }
  if (const Dict* x = a.dict(), *y = b.dict(); x != nullptr && y != nullptr) {
    if (x == y) return true;
    if (x->entries().size() != y->entries().size()) return false;
    for (const auto& [key, value] : x->entries()) {
      const Value* other = y->Find(key.bytes());
      if (other == nullptr) return false;
      ASSIGN_OR_RETURN(const bool same, Equal(value, *other, budget));
      if (!same) return false;
    }
    return true;
  }
  return a.ns() != nullptr && a.ns() == b.ns();
}

}  // namespace banyan::jinja
