#include "services/client/commands/completion_script.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <string_view>
#include <vector>

namespace banyan::client {
namespace {

enum class ValueKind { kNone, kChoice, kDirectory, kFile, kOther };

// What an option or a positional takes.
struct Value {
  ValueKind kind = ValueKind::kOther;
  std::vector<std::string> choices;
};

bool StartsWith(std::string_view text, std::string_view prefix) {
  return text.substr(0, prefix.size()) == prefix;
}

// CLI11 writes types as "TEXT", "DIR" or "TEXT:{text,json}".
Value ValueOf(const CLI::Option& option) {
  if (option.get_items_expected_max() == 0) return {ValueKind::kNone, {}};
  const std::string type = option.get_type_name();
  if (StartsWith(type, "DIR")) return {ValueKind::kDirectory, {}};
  if (StartsWith(type, "FILE")) return {ValueKind::kFile, {}};
  const size_t open = type.find('{'), close = type.rfind('}');
  if (open == std::string::npos || close == std::string::npos || close < open) return {};
  return {ValueKind::kChoice, CLI::detail::split(type.substr(open + 1, close - open - 1), ',')};
}

std::vector<const CLI::App*> Verbs(const CLI::App& app) {
  return app.get_subcommands([](const CLI::App* verb) { return !verb->get_group().empty(); });
}

std::vector<const CLI::Option*> Options(const CLI::App& app) {
  return app.get_options([](const CLI::Option* option) { return !option->get_group().empty(); });
}

// "-h", "--help": as they are typed.
std::vector<std::string> Names(const CLI::Option& option) {
  std::vector<std::string> names;
  for (const std::string& name : option.get_snames()) names.push_back("-" + name);
  for (const std::string& name : option.get_lnames()) names.push_back("--" + name);
  return names;
}

std::string VerbNames(const CLI::App& app, std::string_view separator) {
  std::vector<std::string> names;
  for (const CLI::App* verb : Verbs(app)) names.push_back(verb->get_name());
  return fmt::format("{}", fmt::join(names, separator));
}

// The words that may stand where no option's value is expected.
std::string BashWords(const CLI::App& app) {
  std::vector<std::string> words;
  for (const CLI::App* verb : Verbs(app)) words.push_back(verb->get_name());
  for (const CLI::Option* option : Options(app)) {
    const std::vector<std::string> names = Names(*option);
    words.insert(words.end(), names.begin(), names.end());
    if (names.empty()) {
      for (const std::string& choice : ValueOf(*option).choices) words.push_back(choice);
    }
  }
  return fmt::format("{}", fmt::join(words, " "));
}

// Lines of a case over "verb:option".
std::string BashValueCases(const CLI::App& verb) {
  std::string out;
  std::vector<std::string> others;
  for (const CLI::Option* option : Options(verb)) {
    const Value value = ValueOf(*option);
    std::vector<std::string> patterns;
    for (const std::string& name : Names(*option)) {
      patterns.push_back(fmt::format("{}:{}", verb.get_name(), name));
    }
    if (patterns.empty() || value.kind == ValueKind::kNone) continue;
    if (value.kind == ValueKind::kOther) {
      others.insert(others.end(), patterns.begin(), patterns.end());
      continue;
    }
    std::string what = value.kind == ValueKind::kDirectory ? "-d" : "-f";
    if (value.kind == ValueKind::kChoice)
      what = fmt::format("-W '{}'", fmt::join(value.choices, " "));
    out += fmt::format("    {}) _banyan_reply {}; return ;;\n", fmt::join(patterns, " | "), what);
  }
  if (!others.empty()) out += fmt::format("    {}) return ;;\n", fmt::join(others, " | "));
  return out;
}

constexpr std::string_view kBashHead =
    R"(# Completion of banyan for bash, as `banyan completion bash` prints it.

# _banyan_reply OPTIONS OF compgen: what fits the word under the cursor.
_banyan_reply() {
  mapfile -t COMPREPLY < <(compgen "$@" -- "$cur")
  # File names are quoted and get a slash; bash refuses this outside a completion.
  if [[ $1 == -[df] ]]; then compopt -o filenames 2>/dev/null || :; fi
}

_banyan() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} verb='' i
  # "--output=json" comes as three words.
  if [[ $cur == = ]]; then
    cur=''
  elif [[ $prev == = ]]; then
    prev=${COMP_WORDS[COMP_CWORD - 2]}
  fi
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; ++i)); do
    case ${COMP_WORDS[i]} in
      --) return ;;
)";

// 'text' for zsh: one word in single quotes; what _arguments reads in it is escaped.
std::string ZshQuote(std::string_view text) {
  std::string out = "'";
  for (const char c : text) {
    if (c == '\'') {
      out += "'\\''";
    } else {
      out += c;
    }
  }
  return out + "'";
}

std::string ZshEscape(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '[' || c == ']' || c == ':' || c == '\\') out += '\\';
    out += c;
  }
  return out;
}

std::string ZshAction(const Value& value) {
  switch (value.kind) {
    case ValueKind::kChoice:
      return fmt::format("({})", fmt::join(value.choices, " "));
    case ValueKind::kDirectory:
      return "_files -/";
    case ValueKind::kFile:
      return "_files";
    default:
      return " ";
  }
}

std::string ZshArguments(const CLI::App& app) {
  std::string out = "_arguments";
  int positional = 0;
  for (const CLI::Option* option : Options(app)) {
    const Value value = ValueOf(*option);
    const std::vector<std::string> names = Names(*option);
    // Free text: nothing to offer, and an entry for it would keep zsh from completing options.
    if (names.empty() && value.kind != ValueKind::kOther) {
      out += " " + ZshQuote(fmt::format("{}:{}:{}", ++positional,
                                        ZshEscape(option->get_single_name()), ZshAction(value)));
    }
    for (const std::string& name : names) {
      const std::string help = ZshEscape(option->get_description());
      out += " " + ZshQuote(value.kind == ValueKind::kNone
                                ? fmt::format("{}[{}]", name, help)
                                : fmt::format("*{}=[{}]:value:{}", name, help, ZshAction(value)));
    }
  }
  return out;
}

}  // namespace

std::string BashCompletion(const CLI::App& app) {
  std::string out(kBashHead);
  out += fmt::format("      {}) verb=${{verb:-${{COMP_WORDS[i]}}}} ;;\n", VerbNames(app, " | "));
  out += "    esac\n  done\n  case $verb:$prev in\n";
  for (const CLI::App* verb : Verbs(app)) out += BashValueCases(*verb);
  out += "  esac\n  case $verb in\n";
  for (const CLI::App* verb : Verbs(app)) {
    out += fmt::format("    {}) _banyan_reply -W '{}' ;;\n", verb->get_name(), BashWords(*verb));
  }
  out += fmt::format("    *) _banyan_reply -W '{}' ;;\n", BashWords(app));
  out += "  esac\n}\n\ncomplete -F _banyan banyan\n";
  return out;
}

std::string ZshCompletion(const CLI::App& app) {
  std::string out =
      "#compdef banyan\n# Completion of banyan for zsh, as `banyan completion zsh` prints it.\n\n"
      "_banyan() {\n  if ((CURRENT == 2)); then\n    local -a verbs=(\n";
  for (const CLI::App* verb : Verbs(app)) {
    out += fmt::format("      {}\n", ZshQuote(fmt::format("{}:{}", verb->get_name(),
                                                          ZshEscape(verb->get_description()))));
  }
  out +=
      fmt::format("    )\n    _describe verb verbs\n    {}\n    return\n  fi\n", ZshArguments(app));
  out += "  local verb=$words[2]\n  shift words\n  ((CURRENT -= 1))\n  case $verb in\n";
  for (const CLI::App* verb : Verbs(app)) {
    out += fmt::format("    {}) {} ;;\n", verb->get_name(), ZshArguments(*verb));
  }
  out +=
      "  esac\n}\n\n"
      "# Read as a file of $fpath, it is the function; read with source, it registers itself.\n"
      "if [[ $funcstack[1] == _banyan ]]; then _banyan \"$@\"; else compdef _banyan banyan; fi\n";
  return out;
}

}  // namespace banyan::client
