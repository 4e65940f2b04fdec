#pragma once

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "spdlog/spdlog.h"

// One line an event on stderr; nothing of a prompt at info level or above. The format string is
// fmt's: LOG_INFO("shard {} serves {} experts", target, count).
#define LOG_DEBUG(...) ::spdlog::debug(__VA_ARGS__)
#define LOG_INFO(...) ::spdlog::info(__VA_ARGS__)
#define LOG_WARNING(...) ::spdlog::warn(__VA_ARGS__)
#define LOG_ERROR(...) ::spdlog::error(__VA_ARGS__)

namespace conclave {

// Called once by main: names the process in each line and sets the lowest level printed.
// InvalidArgument unless level is debug, info, warning or error.
absl::Status InitLog(absl::string_view process_name, absl::string_view level);

}  // namespace conclave
