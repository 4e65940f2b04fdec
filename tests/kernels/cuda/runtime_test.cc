#include "kernels/cuda/runtime.h"

#include "kernels/cuda/rows.h"
#include "tests/kernels/cuda/cuda_test_support.h"

namespace conclave::cuda {
namespace {

using testing::HasSubstr;

TEST(ParseCudaDeviceTest, TakesAnOrdinal) {
  EXPECT_EQ(ParseCudaDevice("cuda").value(), 0);
  EXPECT_EQ(ParseCudaDevice("cuda:3").value(), 3);
  for (const char* const bad : {"", "cpu", "cuda:", "cuda:-1", "cuda3", "cuda:x"}) {
    EXPECT_THAT(ParseCudaDevice(bad),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("want \"cpu\"")));
  }
}

TEST(QueryDeviceTest, SaysWhyThereIsNone) {
  if (DeviceCount() > 0) {
    EXPECT_THAT(QueryDevice(DeviceCount()),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("CUDA device is")));
    return;
  }
  EXPECT_THAT(QueryDevice(0),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("no CUDA device")));
}

using RuntimeTest = CudaTest;

TEST_F(RuntimeTest, DescribesTheDevice) {
  ASSERT_OK_AND_ASSIGN(const DeviceInfo info, QueryDevice(0));
  EXPECT_GE(info.compute_major, 8);
  EXPECT_GT(info.num_multiprocessors, 0);
  EXPECT_GT(info.total_bytes, 0);
  EXPECT_LE(info.free_bytes, info.total_bytes);
  EXPECT_THAT(info.ToString(), HasSubstr("compute capability"));
  RecordProperty("device", info.ToString());
}

TEST_F(RuntimeTest, CopiesThroughPinnedMemoryAndFills) {
  ASSERT_OK_AND_ASSIGN(PinnedMemory pinned, PinnedMemory::Allocate(1000));
  for (int i = 0; i < 1000; ++i) pinned.As<uint8_t>()[i] = static_cast<uint8_t>(i * 7);
  uint8_t* const device = Empty<uint8_t>(1000);
  uint8_t* const other = Empty<uint8_t>(1000);
  ASSERT_OK(CopyToDevice(device, pinned.As<uint8_t>(), 1000, stream()));
  ASSERT_OK(FillBytes(device + 10, 0xab, 20, stream()));
  ASSERT_OK(CopyOnDevice(other, device, 1000, stream()));
  const std::vector<uint8_t> back = Download(other, 1000);
  for (int i = 0; i < 1000; ++i) {
    EXPECT_EQ(back[i], i >= 10 && i < 30 ? 0xab : static_cast<uint8_t>(i * 7)) << i;
  }
}

TEST_F(RuntimeTest, TooMuchMemoryIsRefused) {
  EXPECT_THAT(DeviceMemory::Allocate(size_t{1} << 50),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("1073741824 MiB wanted")));
}

TEST_F(RuntimeTest, AGraphRepeatsItsWorkOnNewContents) {
  const int64_t hidden = 64;
  const std::vector<float> weight(hidden, 1.0f);
  float* const input = Empty<float>(hidden);
  BFloat16* const output = Empty<BFloat16>(hidden);
  const float* const device_weight = Upload(weight);
  int recordings = 0;
  ASSERT_OK_AND_ASSIGN(const Graph graph, Graph::Record(stream(), [&] {
                         ++recordings;
                         return RmsNorm({.input = input,
                                         .weight = device_weight,
                                         .output = output,
                                         .num_rows = 1,
                                         .hidden_size = hidden},
                                        nullptr, stream());
                       }));
  EXPECT_EQ(recordings, 1);
  for (uint64_t round = 0; round < 3; ++round) {
    const std::vector<float> values = RandomNormal(hidden, FreshSeed(round));
    ASSERT_OK(CopyToDevice(input, values.data(), hidden * sizeof(float), stream()));
    ASSERT_OK(graph.Launch(stream()));
    const std::vector<BFloat16> actual = Download(output, hidden);
    std::vector<BFloat16> expected(hidden);
    ASSERT_OK(RmsNormReference({.input = values.data(),
                                .weight = weight.data(),
                                .output = expected.data(),
                                .num_rows = 1,
                                .hidden_size = hidden}));
    EXPECT_TRUE(NearBf16(actual, expected, 1e-6f));
  }
}

TEST_F(RuntimeTest, AnEventWaitsForWhatCameBefore) {
  char* const device = Empty<char>(4);
  ASSERT_OK_AND_ASSIGN(const PinnedMemory host, PinnedMemory::Allocate(4));
  ASSERT_OK_AND_ASSIGN(const Event event, Event::Create());
  EXPECT_OK(event.Synchronize());  // marks nothing yet
  for (const char value : {3, 5}) {
    ASSERT_OK(FillBytes(device, value, 4, stream()));
    ASSERT_OK(CopyToHost(host.As<char>(), device, 4, stream()));
    ASSERT_OK(event.Record(stream()));
    ASSERT_OK(FillBytes(device, 7, 4, stream()));
    ASSERT_OK(event.Synchronize());
    EXPECT_EQ(host.As<char>()[3], value);
  }
  ASSERT_OK(stream().Synchronize());
}

TEST_F(RuntimeTest, AFailedRecordingLeavesTheStreamUsable) {
  EXPECT_THAT(Graph::Record(stream(), [] { return absl::InvalidArgumentError("no"); }),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_OK(FillBytes(Empty<char>(16), 0, 16, stream()));
  EXPECT_OK(stream().Synchronize());
}

}  // namespace
}  // namespace conclave::cuda
