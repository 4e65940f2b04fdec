#include "kernels/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/support/status_matchers.h"

namespace conclave {
namespace {

using testing::HasSubstr;

TEST(DeviceTest, AutoIsTheDetectedOne) {
  ASSERT_OK_AND_ASSIGN(const CpuIsa isa, ParseCpuIsa("auto"));
  EXPECT_EQ(isa, DetectCpuIsa());
}

TEST(DeviceTest, NamesParseBackUpToTheDetectedOne) {
  for (const CpuIsa isa :
       {CpuIsa::kPlain, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16, CpuIsa::kAmx}) {
    const absl::StatusOr<CpuIsa> parsed = ParseCpuIsa(CpuIsaName(isa));
    if (isa <= DetectCpuIsa()) {
      ASSERT_OK(parsed);
      EXPECT_EQ(*parsed, isa);
    } else {
      EXPECT_THAT(parsed, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("this CPU runs")));
    }
  }
}

TEST(DeviceTest, UnknownWordIsAnError) {
  EXPECT_THAT(ParseCpuIsa("sse9"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("isa is \"sse9\"")));
}

TEST(DeviceTest, NamesOfDevices) {
  for (const char* name : {"cpu", "cuda", "cuda:0", "cuda:7"}) EXPECT_OK(CheckDeviceName(name));
  for (const char* name : {"", "tpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0"}) {
    EXPECT_THAT(CheckDeviceName(name),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         HasSubstr(absl::StrCat("device is \"", name, "\", want \"cpu\""))));
  }
}

}  // namespace
}  // namespace conclave
