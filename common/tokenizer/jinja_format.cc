#include "common/tokenizer/jinja_format.h"

#include <charconv>
#include <cmath>
#include <cstdlib>

#include "common/base/status_macros.h"
#include "common/base/strings.h"
#include "common/tokenizer/unicode_tables.h"
#include "common/tokenizer/utf8.h"

namespace banyan::jinja {
namespace {

void AppendEscape(uint32_t c, std::string& out) {
  if (c < 0x100) {
    out += fmt::format("\\x{:02x}", c);
  } else if (c < 0x10000) {
    out += fmt::format("\\u{:04x}", c);
  } else {
    out += fmt::format("\\U{:08x}", c);
  }
}

void AppendPythonString(std::string_view text, std::string& out) {
  const bool has_single = text.find('\'') != std::string_view::npos;
  const char quote = has_single && text.find('"') == std::string_view::npos ? '"' : '\'';
  out.push_back(quote);
  for (size_t pos = 0; pos < text.size();) {
    int32_t length;
    const uint32_t c = DecodeValid(text, pos, length);
    if (c == static_cast<uint8_t>(quote) || c == '\\') {
      out.push_back('\\');
      out.push_back(static_cast<char>(c));
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (IsPythonPrintable(c)) {
      out.append(text.substr(pos, length));
    } else {
      AppendEscape(c, out);
    }
    pos += length;
  }
  out.push_back(quote);
}

void AppendJsonString(std::string_view text, bool ensure_ascii, std::string& out) {
  out.push_back('"');
  for (size_t pos = 0; pos < text.size();) {
    int32_t length;
    const uint32_t c = DecodeValid(text, pos, length);
    constexpr std::string_view kNamed = "\"\\\n\r\t\b\f";
    constexpr std::string_view kNames = "\"\\nrtbf";
    const size_t named = c < 0x80 ? kNamed.find(static_cast<char>(c)) : std::string_view::npos;
    if (named != std::string_view::npos) {
      out.push_back('\\');
      out.push_back(kNames[named]);
    } else if (c < 0x20 || (ensure_ascii && c >= 0x80 && c < 0x10000)) {
      out += fmt::format("\\u{:04x}", c);
    } else if (ensure_ascii && c >= 0x10000) {
      out += fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + ((c - 0x10000) >> 10),
                         0xDC00 + ((c - 0x10000) & 0x3FF));
    } else {
      out.append(text.substr(pos, length));
    }
    pos += length;
  }
  out.push_back('"');
}

std::string FormatInteger(Int value) { return fmt::format("{}", value); }

// repr, for values inside containers and for scalars other than strings.
absl::Status AppendRepr(const Value& value, std::string& out, Budget& budget) {
  const size_t before = out.size();
  if (const JinjaText* text = value.text()) {
    RETURN_IF_ERROR(budget.ChargeText(text->size()));
    AppendPythonString(text->bytes(), out);
  } else if (value.is_bool()) {
    out += value.integer() != 0 ? "True" : "False";
  } else if (value.is_integer()) {
    out += FormatInteger(value.integer());
  } else if (value.is_float()) {
    out += FormatFloat(value.number());
  } else if (value.is_none()) {
    out += "None";
  } else if (value.is_undefined()) {
    out += "Undefined";
  } else if (const List* list = value.list()) {
    out += list->is_tuple ? "(" : "[";
    for (size_t i = 0; i < list->items.size(); ++i) {
      if (i > 0) out += ", ";
      RETURN_IF_ERROR(AppendRepr(list->items[i], out, budget));
    }
    if (list->is_tuple) {
      out += list->items.size() == 1 ? ",)" : ")";
    } else {
      out += "]";
    }
  } else if (const Dict* dict = value.dict()) {
    out += "{";
    for (const auto& [key, item] : dict->entries()) {
      if (&key != &dict->entries().front().first) out += ", ";
      RETURN_IF_ERROR(budget.ChargeText(key.size()));
      AppendPythonString(key.bytes(), out);
      out += ": ";
      RETURN_IF_ERROR(AppendRepr(item, out, budget));
    }
    out += "}";
  } else {
    return InvalidArgumentF("a {} cannot be printed", value.TypeName());
  }
  if (out.size() > kMaxTextBytes) return budget.ChargeText(out.size());
  return budget.Charge(1 + static_cast<int64_t>((out.size() - before) / 64));
}

class JsonWriter {
 public:
  JsonWriter(const JsonStyle& style, Budget& budget) : style_(style), budget_(budget) {}

  absl::Status Write(const Value& value, int32_t level) {
    RETURN_IF_ERROR(budget_.Charge(1));
    if (out_.size() > kMaxTextBytes) return budget_.ChargeText(out_.size());
    if (const JinjaText* text = value.text()) {
      RETURN_IF_ERROR(budget_.ChargeText(text->size()));
      AppendJsonString(text->bytes(), style_.ensure_ascii, out_);
    } else if (value.is_bool()) {
      out_ += value.integer() != 0 ? "true" : "false";
    } else if (value.is_integer()) {
      out_ += FormatInteger(value.integer());
    } else if (value.is_float()) {
      const double number = value.number();
      if (std::isnan(number)) {
        out_ += "NaN";
      } else if (std::isinf(number)) {
        out_ += number > 0 ? "Infinity" : "-Infinity";
      } else {
        out_ += FormatFloat(number);
      }
    } else if (value.is_none()) {
      out_ += "null";
    } else if (const List* list = value.list()) {
      return WriteList(*list, level);
    } else if (const Dict* dict = value.dict()) {
      return WriteDict(*dict, level);
    } else {
      return InvalidArgumentF("Object of type {} is not JSON serializable", value.TypeName());
    }
    return absl::OkStatus();
  }

  std::string Take() { return std::move(out_); }

 private:
  absl::Status WriteList(const List& list, int32_t level) {
    if (list.items.empty()) {
      out_ += "[]";
      return absl::OkStatus();
    }
    out_ += "[";
    for (size_t i = 0; i < list.items.size(); ++i) {
      RETURN_IF_ERROR(Separate(i == 0, level + 1));
      RETURN_IF_ERROR(Write(list.items[i], level + 1));
    }
    RETURN_IF_ERROR(Close(level));
    out_ += "]";
    return absl::OkStatus();
  }

  absl::Status WriteDict(const Dict& dict, int32_t level) {
    if (dict.entries().empty()) {
      out_ += "{}";
      return absl::OkStatus();
    }
    out_ += "{";
    for (const auto& [key, item] : dict.entries()) {
      RETURN_IF_ERROR(Separate(&key == &dict.entries().front().first, level + 1));
      RETURN_IF_ERROR(budget_.ChargeText(key.size()));
      AppendJsonString(key.bytes(), style_.ensure_ascii, out_);
      out_ += ": ";
      RETURN_IF_ERROR(Write(item, level + 1));
    }
    RETURN_IF_ERROR(Close(level));
    out_ += "}";
    return absl::OkStatus();
  }

  absl::Status Separate(bool first, int32_t level) {
    if (!first) out_ += style_.indent < 0 ? ", " : ",";
    return Close(level);
  }

  // A new line at `level`, in the indented style.
  absl::Status Close(int32_t level) {
    if (style_.indent < 0) return absl::OkStatus();
    const size_t width = static_cast<size_t>(level) * static_cast<size_t>(style_.indent);
    RETURN_IF_ERROR(budget_.ChargeText(width));
    out_ += '\n';
    out_.append(width, ' ');
    return absl::OkStatus();
  }

  const JsonStyle style_;
  Budget& budget_;
  std::string out_;
};

}  // namespace

std::string FormatFloat(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[64];
  const auto result =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific);
  std::string_view text(buffer, static_cast<size_t>(result.ptr - buffer));  // -d.ddde+xx
  std::string out;
  if (text[0] == '-') {
    out = "-";
    text.remove_prefix(1);
  }
  const size_t e = text.find('e');
  const int32_t exponent = std::atoi(std::string(text.substr(e + 1)).c_str());
  std::string digits(1, text[0]);
  if (e > 2) digits += text.substr(2, e - 2);
  const auto num_digits = static_cast<int32_t>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    out += digits[0];
    if (num_digits > 1) out += "." + digits.substr(1);
    return out + fmt::format("e{}{:02}", exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  if (exponent < 0)
    return out + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  if (num_digits <= exponent + 1) {
    return out + digits + std::string(static_cast<size_t>(exponent + 1 - num_digits), '0') + ".0";
  }
  return out + digits.substr(0, exponent + 1) + "." + digits.substr(exponent + 1);
}

absl::StatusOr<JinjaText> ToText(const Value& value, Budget& budget) {
  if (const JinjaText* text = value.text()) return *text;
  if (value.is_undefined()) return JinjaText();
  std::string out;
  RETURN_IF_ERROR(AppendRepr(value, out, budget));
  const bool container = value.list() != nullptr || value.dict() != nullptr;
  return JinjaText(std::move(out), container);
}

absl::StatusOr<std::string> ToJson(const Value& value, const JsonStyle& style, Budget& budget) {
  JsonWriter writer(style, budget);
  RETURN_IF_ERROR(writer.Write(value, 0));
  return writer.Take();
}

}  // namespace banyan::jinja
