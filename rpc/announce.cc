#include "rpc/announce.h"

#include <iostream>
#include <nlohmann/json.hpp>

namespace conclave {
namespace {

void PrintLine(const nlohmann::ordered_json& line) {
  // Bytes that are no UTF-8 are replaced: dump() would throw.
  std::cout << line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace)
            << std::endl;
}

}  // namespace

void PrintListening(const std::vector<std::pair<std::string, std::string>>& endpoints) {
  nlohmann::ordered_json line = {{"event", "listening"}};
  for (const auto& [name, address] : endpoints) line[name] = address;
  PrintLine(line);
}

void PrintReady() { PrintLine({{"event", "ready"}}); }

}  // namespace conclave
