// On the emulator with cuBLASLt's stand-in, on a GPU with cuBLASLt itself.

#include "kernels/cuda/library_gemm.h"

#include <algorithm>
#include <cmath>

#include "common/fp8.h"
#include "common/fp8_rows.h"
#include "tests/kernels/cuda/cuda_test_support.h"
#include "tests/kernels/cuda/weights_test_support.h"

#if defined(CONCLAVE_CUDA_EMULATION)
#include "tests/support/use_cublaslt_stand_in.h"
#endif

namespace conclave::cuda {
namespace {

using testing::FloatNear;
using testing::HasSubstr;
using testing::Pointwise;

TEST(CublasLtLibraryTest, SaysWhereItWasLookedFor) {
  const char* const names[] = {"libnot_there.so.13", "libnot_there.so.12"};
  EXPECT_THAT(
      CublasLtLibrary::Load(names),
      StatusIs(absl::StatusCode::kFailedPrecondition,
               testing::AllOf(HasSubstr("deterministic is false"), HasSubstr("LD_LIBRARY_PATH"),
                              HasSubstr("libnot_there.so.13"), HasSubstr("libnot_there.so.12"))));
  // Another library, that has none of its functions.
  const char* const other[] = {"libc.so.6"};
  EXPECT_THAT(CublasLtLibrary::Load(other),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("libc.so.6 has no cublasLtGetVersion")));
}

// Needs no GPU.
TEST(CublasLtLibraryTest, HasEveryFunction) {
  const absl::StatusOr<const CublasLtLibrary*> library = CublasLtLibrary::Get();
#if !defined(CONCLAVE_CUDA_EMULATION)
  if (!library.ok()) GTEST_SKIP() << "SKIPPED: " << library.status().message();
#endif
  ASSERT_OK(library);
  EXPECT_GE((*library)->GetVersion(), 120000u);
  EXPECT_NE((*library)->GetStatusString(cublaslt::kNotSupported), nullptr);
}

class LibraryGemmTest : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
#if !defined(CONCLAVE_CUDA_EMULATION)
    if (!CublasLtLibrary::Get().ok()) {
      GTEST_SKIP() << "SKIPPED: no cuBLASLt here, no product of its was run";
    }
#endif
    ASSERT_OK_AND_ASSIGN(const DeviceInfo info, QueryDevice(0));
    has_fp8_ = info.compute_major == 9;
    ASSERT_OK_AND_ASSIGN(gemm_, LibraryGemm::Create({.compute_major = info.compute_major,
                                                     .max_rows = kMaxLibraryRows,
                                                     .max_fp8_in_features = 1024}));
  }

  DeviceMatrix Upload(const HostMatrices& host) {
    DeviceMatrix matrix{
        .format = host.format, .out_features = host.out_features, .in_features = host.in_features};
    if (host.format == WeightFormat::kBf16) {
      matrix.values = CudaTest::Upload(host.bf16);
    } else {
      matrix.values = CudaTest::Upload(host.fp8);
      matrix.scales = CudaTest::Upload(host.scales);
    }
    return matrix;
  }

  // Rows past num_rows are there too, `before` in them: FP8 may write them.
  std::vector<float> Multiply(const BFloat16* input, int64_t rows, const DeviceMatrix& weight,
                              const std::vector<float>& before, bool accumulate) {
    float* const out = CudaTest::Upload(before);
    absl::StatusOr<bool> done = gemm_->Linear({.input = input,
                                               .weight = weight,
                                               .output = out,
                                               .num_rows = rows,
                                               .accumulate = accumulate},
                                              stream());
    EXPECT_OK(done);
    EXPECT_TRUE(done.ok() && *done);
    return Download(out, before.size());
  }

  static constexpr int64_t kMaxLibraryRows = 70;
#if defined(CONCLAVE_CUDA_EMULATION)
  const CublasLtStandIn stand_in_;
#endif
  bool has_fp8_ = false;
  std::unique_ptr<LibraryGemm> gemm_;
};

TEST_F(LibraryGemmTest, Bf16IsWhatOurKernelsGive) {
  for (const auto& [out, in] : {std::pair<int64_t, int64_t>{4, 32}, {96, 64}, {300, 288}}) {
    const DeviceMatrix weight =
        Upload(RandomMatrices(WeightFormat::kBf16, 1, out, in, FreshSeed(out)));
    for (const int64_t rows : {33, 40, 65}) {
      const BFloat16* const input = CudaTest::Upload(RandomBf16(rows * in, FreshSeed(rows)));
      for (const bool accumulate : {false, true}) {
        // Without accumulating, what was there is not read.
        const std::vector<float> before = accumulate
                                              ? RandomNormal(rows * out, FreshSeed(3))
                                              : std::vector<float>(rows * out, std::nanf(""));
        float* const own = CudaTest::Upload(before);
        ASSERT_OK(Linear({.input = input,
                          .weight = weight,
                          .output = own,
                          .num_rows = rows,
                          .accumulate = accumulate},
                         stream()));
        // As in linear_test.cc: the same terms, in another order.
        EXPECT_THAT(Multiply(input, rows, weight, before, accumulate),
                    Pointwise(FloatNear(8e-5f), Download(own, rows * out)))
            << out << " x " << in << ", " << rows;
      }
    }
  }
}

TEST_F(LibraryGemmTest, Fp8IsTheProductOfTheRoundedRows) {
  if (!has_fp8_) GTEST_SKIP() << "SKIPPED: needs a Hopper GPU";
  for (const auto& [out, in] : {std::pair<int64_t, int64_t>{16, 512}, {144, 512}, {272, 1024}}) {
    const HostMatrices host =
        RandomMatrices(WeightFormat::kFp8Block128, 1, out, in, FreshSeed(out + in));
    const DeviceMatrix weight = Upload(host);
    const int64_t groups = in / 128;
    for (const int64_t rows : {33, 36, 41}) {
      const std::vector<BFloat16> input = RandomBf16(rows * in, FreshSeed(rows));
      // Each row's groups are the rows of another matrix, that the wire's code rounds as well.
      std::vector<uint8_t> rounded(Fp8RowsBytes(rows * groups, 128));
      EncodeFp8Rows(input.data(), rows * groups, 128, rounded.data());
      const auto* const factors =
          reinterpret_cast<const float*>(rounded.data() + rows * groups * 128);
      const int64_t padded = (rows + 3) / 4 * 4;
      for (const bool accumulate : {false, true}) {
        const std::vector<float> before = RandomNormal(padded * out, FreshSeed(3));
        std::vector<float> expected;
        for (int64_t row = 0; row < padded; ++row) {
          for (int64_t o = 0; o < out; ++o) {
            double sum = accumulate ? before[row * out + o] : 0;
            for (int64_t group = 0; group < groups && row < rows; ++group) {
              double part = 0;
              for (int64_t k = group * 128; k < group * 128 + 128; ++k) {
                part += double{E4M3ToFloat(rounded[row * in + k])} *
                        double{E4M3ToFloat(host.fp8[o * in + k])};
              }
              sum += part * factors[row * groups + group] * host.scales[o / 128 * groups + group];
            }
            expected.push_back(static_cast<float>(sum));
          }
        }
        // Results are near 1. The stand-in is off by one rounding to FP32; Hopper's FP8 products
        // keep 13 bits or so of a sum over 32 k: 2^-13 * sqrt(1024 / 32) of it, with some room.
#if defined(CONCLAVE_CUDA_EMULATION)
        constexpr float kTolerance = 2e-6f;
#else
        constexpr float kTolerance = 4e-3f;
#endif
        EXPECT_THAT(Multiply(CudaTest::Upload(input), rows, weight, before, accumulate),
                    Pointwise(FloatNear(kTolerance), expected))
            << out << " x " << in << ", " << rows;
      }
    }
  }
}

TEST_F(LibraryGemmTest, LeavesToOurKernelsWhatIsTheirs) {
  const int64_t out = 64, in = 512;
  const DeviceMatrix bf16 = Upload(RandomMatrices(WeightFormat::kBf16, 1, out, in, FreshSeed(1)));
  const DeviceMatrix fp8 =
      Upload(RandomMatrices(WeightFormat::kFp8Block128, 1, out, in, FreshSeed(1)));
  const BFloat16* const input = CudaTest::Upload(RandomBf16(70 * in, FreshSeed(2)));
  const auto tried = [&](const DeviceMatrix& weight, int64_t rows, int64_t offset = 0) {
    const std::vector<float> before(72 * weight.out_features, 7.0f);
    float* const output = CudaTest::Upload(before);
    const absl::StatusOr<bool> done = gemm_->Linear(
        {.input = input + offset, .weight = weight, .output = output, .num_rows = rows}, stream());
    EXPECT_OK(done);
    const bool touched = Download(output, before.size()) != before;
    EXPECT_EQ(touched, done.ok() && *done);
    return touched;
  };
  EXPECT_TRUE(tried(bf16, 33));
  EXPECT_FALSE(tried(bf16, 32));
  EXPECT_FALSE(tried(bf16, 33, /*offset=*/4));  // not aligned
  DeviceMatrix odd = bf16;
  odd.out_features = 62;
  EXPECT_FALSE(tried(odd, 33));
  EXPECT_EQ(tried(fp8, 33), has_fp8_);
  DeviceMatrix few_blocks = fp8;  // whose scales would want padding
  few_blocks.in_features = 384;
  EXPECT_FALSE(tried(few_blocks, 33));
  EXPECT_THAT(
      gemm_->Linear({.input = input, .weight = bf16, .output = Empty<float>(1), .num_rows = 71},
                    stream()),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("num_rows is 71, want 0..70")));
#if defined(CONCLAVE_CUDA_EMULATION)
  const DeviceMatrix unsupported = Upload(
      RandomMatrices(WeightFormat::kBf16, 1, cublaslt::kUnsupportedOutFeatures, in, FreshSeed(1)));
  EXPECT_FALSE(tried(unsupported, 40));
  // On Ampere there is no FP8 of this kind.
  ASSERT_OK_AND_ASSIGN(
      gemm_, LibraryGemm::Create(
                 {.compute_major = 8, .max_rows = kMaxLibraryRows, .max_fp8_in_features = 1024}));
  EXPECT_FALSE(tried(fp8, 33));
  EXPECT_TRUE(tried(bf16, 33));
#endif
}

// The same choice for the same product; a real one may still add the parts of a sum in any order.
#if defined(CONCLAVE_CUDA_EMULATION)
constexpr float kAgain = 0;
#else
constexpr float kAgain = 1e-4f;
#endif

// Recorded once the library has chosen, and launched again on what was changed meanwhile.
TEST_F(LibraryGemmTest, GoesIntoAGraph) {
  const int64_t out = 64, in = 512, rows = 36;
  for (const WeightFormat format : {WeightFormat::kBf16, WeightFormat::kFp8Block128}) {
    if (format == WeightFormat::kFp8Block128 && !has_fp8_) continue;
    const DeviceMatrix weight = Upload(RandomMatrices(format, 1, out, in, FreshSeed(1)));
    const std::vector<BFloat16> first = RandomBf16(rows * in, FreshSeed(2));
    const std::vector<BFloat16> second = RandomBf16(rows * in, FreshSeed(4));
    BFloat16* const input = CudaTest::Upload(first);
    const std::vector<float> before = RandomNormal(rows * out, FreshSeed(3));
    const std::vector<float> once = Multiply(input, rows, weight, before, true);
    float* const output = CudaTest::Upload(before);
#if defined(CONCLAVE_CUDA_EMULATION)
    const int64_t choices = stand_in_.counts().choices;
#endif
    ASSERT_OK_AND_ASSIGN(const Graph graph, Graph::Record(stream(), [&] {
                           return gemm_
                               ->Linear({.input = input,
                                         .weight = weight,
                                         .output = output,
                                         .num_rows = rows,
                                         .accumulate = true},
                                        stream())
                               .status();
                         }));
#if defined(CONCLAVE_CUDA_EMULATION)
    EXPECT_EQ(stand_in_.counts().choices, choices);
#endif
    EXPECT_EQ(Download(output, before.size()), before);
    ASSERT_OK(graph.Launch(stream()));
    EXPECT_THAT(Download(output, before.size()), Pointwise(FloatNear(kAgain), once));
    ASSERT_OK(CopyToDevice(input, second.data(), second.size() * sizeof(BFloat16), stream()));
    ASSERT_OK(graph.Launch(stream()));
    EXPECT_THAT(Download(output, before.size()),
                Pointwise(FloatNear(kAgain), Multiply(input, rows, weight, once, true)));
  }
}

}  // namespace
}  // namespace conclave::cuda
