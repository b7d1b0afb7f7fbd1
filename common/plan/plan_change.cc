#include "common/plan/plan_change.h"

#include "common/base/strings.h"

namespace banyan {

absl::Status WithChanges(const absl::Status& refused, const std::vector<PlanChange>& changes) {
  std::string text = changes.empty()       ? "no change of one flag makes it fit"
                     : changes.size() == 1 ? "this would work: "
                                           : "any one of these would work: ";
  for (size_t i = 0; i < changes.size(); ++i) {
    text += fmt::format("{}{} {}", i == 0 ? "" : ", ", changes[i].flag, changes[i].value);
    if (!changes[i].note.empty()) text += fmt::format(" ({})", changes[i].note);
  }
  const std::string_view message = ToStd(refused.message());
  const size_t line = message.find('\n');
  return absl::Status(refused.code(),
                      fmt::format("{}; {}{}", message.substr(0, line), text,
                                  line == std::string_view::npos ? "" : message.substr(line)));
}

}  // namespace banyan
