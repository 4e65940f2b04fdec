#include "common/trace_context.h"

#include <gtest/gtest.h>

namespace conclave {
namespace {

constexpr char kGood[] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

TEST(TraceContextTest, KeepsWhatIsValid) {
  EXPECT_EQ(ValidTraceparent(kGood), kGood);
  EXPECT_EQ(TraceId(kGood), "0af7651916cd43dd8448eb211c80319c");
  // A later version may say more.
  const std::string later = "01" + std::string(kGood).substr(2) + "-more";
  EXPECT_EQ(ValidTraceparent(later), later);
  EXPECT_EQ(TraceId(""), "");
}

TEST(TraceContextTest, DropsWhatIsNot) {
  const std::string good = kGood;
  for (const std::string& bad :
       {std::string(), good.substr(1), good + "-more", "ff" + good.substr(2),
        "00-" + std::string(32, '0') + good.substr(35),
        good.substr(0, 36) + std::string(16, '0') + "-01",
        "00-0AF7651916CD43DD8448EB211C80319C" + good.substr(35), "00_" + good.substr(3),
        "01" + good.substr(2) + "-a b", "01" + good.substr(2) + "-" + std::string(200, 'a')}) {
    EXPECT_EQ(ValidTraceparent(bad), "") << bad;
  }
}

}  // namespace
}  // namespace conclave
