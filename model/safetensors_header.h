#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/safetensors.h"

namespace conclave {

// One tensor as the header describes it; offsets count from the first byte after the header.
struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kBF16;
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  // by ascending offset
  std::map<std::string, std::string> metadata;
};

// Parses the JSON of a header that describes data_bytes of data. DataLoss naming `path`, and the
// tensor where one is to blame: not the format's JSON, a name twice, an unknown dtype, an offset
// out of bounds, a length that is not shape * dtype, or data that tensors share or none covers.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::string_view json,
                                                         uint64_t data_bytes,
                                                         const std::string& path);

// The 8 length bytes and the JSON of a file with these tensors one after another, padded with
// spaces to a multiple of 8 so that the data is aligned. Fills in begin and end.
std::string FormatSafetensorsHeader(std::vector<SafetensorsEntry>& entries);

}  // namespace conclave
