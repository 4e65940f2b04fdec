#include "common/fp8.h"
#include "kernels/cpu/cpu_ops.h"

namespace conclave::cpu {
namespace {

struct Table {
  float values[256];
};

constexpr Table MakeTable() {
  Table table = {};
  for (int code = 0; code < 256; ++code) {
    table.values[code] = E4M3ToFloat(static_cast<uint8_t>(code));
  }
  return table;
}

constexpr Table kTable = MakeTable();

}  // namespace

const float* const kE4M3Values = kTable.values;

}  // namespace conclave::cpu
