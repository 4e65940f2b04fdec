#include "kernels/packed_matrix.h"

#include <gtest/gtest.h>

#include "kernels/quantize.h"
#include "tests/kernels/kernel_test_support.h"

namespace conclave {
namespace {

TEST(PackedMatrixTest, LiesInPanelsOf16OutputsByPairsOfInputs) {
  // 2 x 3: the first line holds inputs 0 and 1 of each output, the second input 2 and a zero.
  std::vector<BFloat16> rows(6);
  for (int i = 0; i < 6; ++i) rows[i] = ToBFloat16(static_cast<float>(i + 1));
  const PackedMatrix matrix = Pack(rows, 3);
  EXPECT_EQ(matrix.out_features(), 2);
  EXPECT_EQ(matrix.in_features(), 3);
  EXPECT_EQ(matrix.num_panels(), 1);
  EXPECT_EQ(matrix.num_pairs(), 2);
  EXPECT_EQ(matrix.bytes(), 128u);
  const std::vector<float> line0 = {1, 2, 4, 5}, line1 = {3, 0, 6, 0};
  for (int i = 0; i < 32; ++i) {
    EXPECT_EQ(ToFloat(matrix.Panel(0)[i]), i < 4 ? line0[i] : 0) << i;
    EXPECT_EQ(ToFloat(matrix.Panel(0)[32 + i]), i < 4 ? line1[i] : 0) << i;
  }
}

TEST(PackedMatrixTest, EveryWeightIsFoundForAnyShapeAndPool) {
  ThreadPool pool(3);
  for (const int64_t out : {1, 15, 16, 17, 100}) {
    for (const int64_t in : {1, 2, 3, 64, 65}) {
      const std::vector<BFloat16> rows = RandomBf16(out * in, out * 100 + in);
      const MatrixRows part{rows.data(), out};
      const PackedMatrix matrix = PackedMatrix::Pack({&part, 1}, in, &pool);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(matrix.Panel(0)) % 64, 0u);
      for (int64_t o = 0; o < out; ++o) {
        for (int64_t i = 0; i < in; ++i) ASSERT_EQ(matrix.At(o, i), rows[o * in + i]);
      }
    }
  }
}

TEST(PackedMatrixTest, QuantizedWeightsKeepTheirScalesPerGroup) {
  ThreadPool pool(3);
  for (const WeightDtype dtype : {WeightDtype::kInt8, WeightDtype::kInt4}) {
    for (const int64_t out : {1, 16, 17, 100}) {
      for (const int64_t in : {1, 64, 257, 600}) {
        const std::vector<BFloat16> rows = RandomBf16(out * in, out * 100 + in);
        const MatrixRows part{rows.data(), out};
        const PackedMatrix matrix = PackedMatrix::Pack({&part, 1}, in, &pool, dtype);
        ASSERT_EQ(matrix.bytes(), WeightBytes(dtype, out, in));
        const int64_t group = matrix.group_size();
        std::vector<int8_t> codes(group);
        for (int64_t o = 0; o < out; ++o) {
          for (int64_t begin = 0; begin < in; begin += group) {
            const int64_t size = std::min(group, in - begin);
            float scale = 0;
            (dtype == WeightDtype::kInt8 ? QuantizeInt8 : QuantizeInt4)(
                rows.data() + o * in + begin, size, codes.data(), &scale);
            ASSERT_EQ(matrix.Scale(o, begin / group), scale);
            for (int64_t k = 0; k < size; ++k) {
              ASSERT_EQ(matrix.Code(o, begin + k), codes[k]);
              ASSERT_EQ(matrix.Value(o, begin + k), static_cast<float>(codes[k]) * scale);
            }
          }
        }
      }
    }
  }
}

TEST(PackedMatrixTest, Fp8PartsKeepTheirOwnScales) {
  // The second part's blocks begin in the middle of a panel and of the first one's.
  for (const int64_t in : {1, 130, 256}) {
    const Fp8Matrix q(150, in, 1, 1), k(9, in, 2, 1);
    const Fp8Rows parts[] = {q.Rows(), {nullptr, nullptr, 0}, k.Rows()};
    const PackedMatrix matrix = PackedMatrix::PackFp8(parts, in, nullptr);
    ASSERT_EQ(matrix.dtype(), WeightDtype::kFp8);
    ASSERT_EQ(matrix.out_features(), 159);
    std::vector<BFloat16> expected = q.Widened();
    const std::vector<BFloat16> below = k.Widened();
    expected.insert(expected.end(), below.begin(), below.end());
    for (int64_t o = 0; o < 159; ++o) {
      for (int64_t i = 0; i < in; ++i) ASSERT_EQ(matrix.At(o, i), expected[o * in + i]);
    }
  }
}

TEST(PackedMatrixTest, StacksPartsAcrossPanels) {
  const int64_t in = 5;
  const std::vector<BFloat16> q = RandomBf16(10 * in, 1), k = RandomBf16(9 * in, 2),
                              v = RandomBf16(1 * in, 3);
  const std::vector<MatrixRows> parts = {
      {q.data(), 10}, {nullptr, 0}, {k.data(), 9}, {v.data(), 1}};
  const PackedMatrix matrix = PackedMatrix::Pack(parts, in, nullptr);
  ASSERT_EQ(matrix.out_features(), 20);
  for (int64_t i = 0; i < in; ++i) {
    EXPECT_EQ(matrix.At(9, i), q[9 * in + i]);
    EXPECT_EQ(matrix.At(10, i), k[i]);
    EXPECT_EQ(matrix.At(18, i), k[8 * in + i]);
    EXPECT_EQ(matrix.At(19, i), v[i]);
  }
}

TEST(PackedMatrixTest, LargeOnesStartOnAHugePage) {
  const int64_t out = 1100, in = 1024;  // 2.2 MB
  const std::vector<BFloat16> rows = RandomBf16(out * in, 4);
  PackedMatrix matrix = Pack(rows, in);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(matrix.Panel(0)) % (2 << 20), 0u);
  const PackedMatrix moved = std::move(matrix);
  EXPECT_EQ(moved.At(1099, 1023), rows.back());
}

TEST(PackedMatrixTest, NeedsNoAlignment) {
  std::vector<uint8_t> bytes(1 + 2 * 4);
  const uint16_t values[4] = {0x3f80, 0x4000, 0x4040, 0x4080};
  std::memcpy(bytes.data() + 1, values, sizeof(values));
  const MatrixRows part{reinterpret_cast<const BFloat16*>(bytes.data() + 1), 2};
  const PackedMatrix matrix = PackedMatrix::Pack({&part, 1}, 2, nullptr);
  EXPECT_EQ(ToFloat(matrix.At(1, 0)), 3);
}

TEST(PackedMatrixTest, EmptyHoldsNothing) {
  const PackedMatrix matrix = PackedMatrix::Pack({}, 8, nullptr);
  EXPECT_EQ(matrix.out_features(), 0);
  EXPECT_EQ(matrix.bytes(), 0u);
}

}  // namespace
}  // namespace conclave
