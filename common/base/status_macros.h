// RETURN_IF_ERROR(status_expression); ASSIGN_OR_RETURN(auto value, status_or_expression);
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define BANYAN_CONCAT_INNER(a, b) a##b
#define BANYAN_CONCAT(a, b) BANYAN_CONCAT_INNER(a, b)

#define RETURN_IF_ERROR(expression)                                                           \
  do {                                                                                        \
    if (absl::Status banyan_status = (expression); !banyan_status.ok()) return banyan_status; \
  } while (false)

#define ASSIGN_OR_RETURN(lhs, expression) \
  BANYAN_ASSIGN_OR_RETURN(BANYAN_CONCAT(banyan_status_or_, __LINE__), lhs, expression)

// A name and what may be a declaration: neither goes in parentheses.
// NOLINTBEGIN(bugprone-macro-parentheses)
#define BANYAN_ASSIGN_OR_RETURN(temporary, lhs, expression)  \
  auto temporary = (expression);                             \
  if (!temporary.ok()) return std::move(temporary).status(); \
  lhs = *std::move(temporary)
// NOLINTEND(bugprone-macro-parentheses)
