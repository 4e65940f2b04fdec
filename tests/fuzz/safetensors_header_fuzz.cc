// A header is refused with DataLoss or describes the data without a gap, and can be written again.
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "common/check.h"
#include "model/safetensors_header.h"
#include "tests/fuzz/byte_source.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace conclave;
  ByteSource source(data, size);
  const uint64_t data_bytes = source.Below(1 << 16);
  const std::string json(source.Rest());
  auto header = ParseSafetensorsHeader(json, data_bytes, "some.safetensors");
  if (!header.ok()) {
    CHECK(header.status().code() == absl::StatusCode::kDataLoss) << header.status();
    CHECK(absl::StrContains(header.status().message(), "some.safetensors")) << header.status();
    return 0;
  }
  uint64_t covered = 0;
  for (const SafetensorsEntry& entry : header->entries) {
    CHECK_EQ(entry.begin, covered);
    uint64_t bytes = DTypeSize(entry.dtype);
    for (const int64_t dimension : entry.shape) {
      CHECK_GE(dimension, 0);
      bytes *= static_cast<uint64_t>(dimension);
    }
    CHECK_EQ(entry.end - entry.begin, bytes) << entry.name;
    covered = entry.end;
  }
  CHECK_EQ(covered, data_bytes);

  std::vector<SafetensorsEntry> entries = header->entries;
  const std::string written = FormatSafetensorsHeader(entries);
  const auto again = ParseSafetensorsHeader(written.substr(8), data_bytes, "written");
  CHECK(again.ok()) << again.status();
  CHECK_EQ(again->entries.size(), header->entries.size());
  for (size_t i = 0; i < entries.size(); ++i) {
    // Tensors without a byte share an offset, where the order is free.
    if (entries[i].begin == entries[i].end) continue;
    CHECK_EQ(again->entries[i].name, header->entries[i].name);
    CHECK_EQ(again->entries[i].end, header->entries[i].end);
  }
  return 0;
}
