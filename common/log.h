#pragma once

#include <initializer_list>
#include <string>
#include <utility>

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

// Called once by main, before any thread that may log: names the process in each line, sets the
// lowest level printed and the form of a line, "text" for people or "json": one object a line.
// InvalidArgument unless level is debug, info, warning or error and format is one of those two.
absl::Status InitLog(absl::string_view process_name, absl::string_view level,
                     absl::string_view format = "text");

using LogField = std::pair<absl::string_view, std::string>;

// An event of a request, at info level: "request finished request_id=r1 outcome=ok", or in JSON
// {.., "message": "request finished", "request_id": "r1", "outcome": "ok"}. Fields that are empty
// are left out. Any thread.
void LogEvent(absl::string_view event, std::initializer_list<LogField> fields);

}  // namespace conclave
