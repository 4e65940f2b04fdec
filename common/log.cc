#include "common/log.h"

#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "spdlog/pattern_formatter.h"
#include "spdlog/sinks/stdout_color_sinks.h"

namespace conclave {
namespace {

constexpr char kTextPattern[] = "%Y-%m-%dT%H:%M:%S.%e %^%l%$ %n %v";
// %* is the message as a JSON string, %v, of an event, already the members of the object.
constexpr char kJsonPattern[] =
    R"({"time":"%Y-%m-%dT%H:%M:%S.%e%z","level":"%l","process":"%n","message":%*})";
constexpr char kJsonEventPattern[] =
    R"({"time":"%Y-%m-%dT%H:%M:%S.%e%z","level":"%l","process":"%n",%v})";

// Bytes that are no UTF-8 are replaced: dump() would throw.
std::string JsonString(absl::string_view text) {
  return nlohmann::json(std::string(text))
      .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

class JsonMessageFlag final : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm&,
              spdlog::memory_buf_t& out) override {
    const std::string quoted =
        JsonString(absl::string_view(message.payload.data(), message.payload.size()));
    out.append(quoted.data(), quoted.data() + quoted.size());
  }
  std::unique_ptr<custom_flag_formatter> clone() const override {
    return spdlog::details::make_unique<JsonMessageFlag>();
  }
};

// Written by InitLog, before there are threads; null until then and in tests.
std::shared_ptr<spdlog::logger>& JsonEventLogger() {
  static std::shared_ptr<spdlog::logger> logger;
  return logger;
}

std::string TextFields(absl::string_view event, std::initializer_list<LogField> fields) {
  std::string line(event);
  for (const auto& [name, value] : fields) {
    if (value.empty()) continue;
    const bool plain = value.find_first_of(" \t\r\n\"") == std::string::npos;
    absl::StrAppend(&line, " ", name, "=", plain ? value : JsonString(value));
  }
  return line;
}

std::string JsonFields(absl::string_view event, std::initializer_list<LogField> fields) {
  std::string line = absl::StrCat("\"message\":", JsonString(event));
  for (const auto& [name, value] : fields) {
    if (!value.empty()) absl::StrAppend(&line, ",\"", name, "\":", JsonString(value));
  }
  return line;
}

}  // namespace

absl::Status InitLog(absl::string_view process_name, absl::string_view level,
                     absl::string_view format) {
  spdlog::level::level_enum parsed;
  if (level == "debug") {
    parsed = spdlog::level::debug;
  } else if (level == "info") {
    parsed = spdlog::level::info;
  } else if (level == "warning") {
    parsed = spdlog::level::warn;
  } else if (level == "error") {
    parsed = spdlog::level::err;
  } else {
    return absl::InvalidArgumentError(absl::StrCat("log_level is \"", std::string(level),
                                                   "\", want debug, info, warning or error"));
  }
  if (format != "text" && format != "json") {
    return absl::InvalidArgumentError(
        absl::StrCat("log_format is \"", format, "\", want text or json"));
  }
  const auto make = [&] {
    // Both loggers share the lock of standard error: their lines do not mix.
    auto logger = std::make_shared<spdlog::logger>(
        std::string(process_name), std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
    logger->set_level(parsed);
    return logger;
  };
  const std::shared_ptr<spdlog::logger> logger = make();
  JsonEventLogger() = nullptr;
  if (format == "text") {
    logger->set_pattern(kTextPattern);
  } else {
    auto formatter = std::make_unique<spdlog::pattern_formatter>();
    formatter->add_flag<JsonMessageFlag>('*').set_pattern(kJsonPattern);
    logger->set_formatter(std::move(formatter));
    JsonEventLogger() = make();
    JsonEventLogger()->set_pattern(kJsonEventPattern);
  }
  spdlog::set_default_logger(logger);
  return absl::OkStatus();
}

void LogEvent(absl::string_view event, std::initializer_list<LogField> fields) {
  if (!spdlog::should_log(spdlog::level::info)) return;
  // As an argument: braces in a field are no format.
  if (const auto& json = JsonEventLogger(); json != nullptr) {
    json->info("{}", JsonFields(event, fields));
  } else {
    spdlog::info("{}", TextFields(event, fields));
  }
}

}  // namespace conclave
