#pragma once

#include <cstddef>
#include <cstdint>

#include "common/bfloat16.h"

namespace conclave {

// Rows of BF16 as FP8 for the wire: E4M3 [num_rows, row_size], then one FP32 factor a row
// [num_rows], little-endian, the row's largest magnitude over 448, the largest that E4M3 has. A
// value comes back within 1/16 of itself, or of 2^-15 of the row's largest (448 = 1.75 * 2^8
// against subnormal steps of 2^-9).
size_t Fp8RowsBytes(size_t num_rows, int row_size);

// `out` takes Fp8RowsBytes. A row that holds an infinity or a NaN comes back as NaN wherever it
// held one.
void EncodeFp8Rows(const BFloat16* rows, size_t num_rows, int row_size, uint8_t* out);
void DecodeFp8Rows(const uint8_t* encoded, size_t num_rows, int row_size, BFloat16* rows);

}  // namespace conclave
