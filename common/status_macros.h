#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Returns from the enclosing function with the status of `expr` unless it is OK.
#define RETURN_IF_ERROR(expr)                            \
  do {                                                   \
    ::absl::Status conclave_status_ = (expr);            \
    if (!conclave_status_.ok()) return conclave_status_; \
  } while (false)

#define CONCLAVE_CONCAT_INNER(a, b) a##b
#define CONCLAVE_CONCAT(a, b) CONCLAVE_CONCAT_INNER(a, b)

// ASSIGN_OR_RETURN(auto x, MakeX()): binds the value, or returns the error.
#define ASSIGN_OR_RETURN(lhs, expr) \
  CONCLAVE_ASSIGN_OR_RETURN_IMPL(CONCLAVE_CONCAT(conclave_or_, __LINE__), lhs, expr)
#define CONCLAVE_ASSIGN_OR_RETURN_IMPL(tmp, lhs, expr) \
  auto tmp = (expr);                                   \
  if (!tmp.ok()) return std::move(tmp).status();       \
  lhs = *std::move(tmp)
