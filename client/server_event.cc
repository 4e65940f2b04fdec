#include "client/server_event.h"

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"
#include "rpc/address.h"

namespace conclave {
namespace {

absl::Status NotAnEvent(absl::string_view line) {
  return absl::InvalidArgumentError(absl::StrCat(
      "\"", line.substr(0, 200), "\" on its standard output, want a listening or ready event"));
}

absl::Status ReadAddress(const nlohmann::json& object, const char* key, absl::string_view line,
                         std::string* address, int* port) {
  if (!object.contains(key) || !object[key].is_string()) return NotAnEvent(line);
  *address = object[key].get<std::string>();
  const absl::StatusOr<HostPort> parsed = ParseHostPort(*address);
  if (!parsed.ok() || parsed->port == 0) return NotAnEvent(line);
  *port = parsed->port;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ServerEvent> ParseServerEvent(absl::string_view line) {
  const nlohmann::json object = nlohmann::json::parse(line.begin(), line.end(), nullptr,
                                                      /*allow_exceptions=*/false);
  if (!object.is_object() || !object.contains("event")) return NotAnEvent(line);
  ServerEvent event;
  if (object["event"] == "ready") {
    event.kind = ServerEvent::Kind::kReady;
    return event;
  }
  if (object["event"] != "listening") return NotAnEvent(line);
  RETURN_IF_ERROR(ReadAddress(object, "grpc", line, &event.grpc, &event.grpc_port));
  RETURN_IF_ERROR(ReadAddress(object, "metrics", line, &event.metrics, &event.metrics_port));
  if (object.contains("http")) {
    RETURN_IF_ERROR(ReadAddress(object, "http", line, &event.http, &event.http_port));
  }
  return event;
}

}  // namespace conclave
