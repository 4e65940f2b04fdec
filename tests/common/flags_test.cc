#include "common/flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace conclave {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

class FlagsTest : public testing::Test {
 protected:
  FlagsTest() {
    app_.add_option("--name", name_, "A name")->required();
    app_.add_option("--wait_seconds", wait_seconds_, "A time")->check(CLI::Range(0.0, 60.0));
    app_.add_option("--count", count_, "A number")->capture_default_str();
    app_.add_option("--peers", peers_, "A list")->delimiter(',');
    PrepareFlags(app_, "FLAGS_TEST", {{"Names", {"--name", "--peers"}}});
  }
  ~FlagsTest() override {
    for (const std::string& name : set_) unsetenv(name.c_str());
  }
  void Set(const std::string& name, const std::string& value) {
    setenv(name.c_str(), value.c_str(), 1);
    set_.push_back(name);
  }
  std::string File(const std::string& text) {
    const std::string path = dir_.File("flags.toml");
    std::ofstream(path) << text;
    return path;
  }
  // As a program would, whatever the parser thinks.
  absl::Status Parse(std::vector<std::string> words) {
    std::reverse(words.begin(), words.end());
    try {
      app_.parse(words);
    } catch (const CLI::Error&) {
    }
    return CompleteFlags(app_, "FLAGS_TEST", [] { return std::vector<absl::Status>(); });
  }

  const TempDir dir_;
  std::vector<std::string> set_;
  CLI::App app_;
  std::string name_;
  double wait_seconds_ = 1;
  int count_ = 7;
  std::vector<std::string> peers_;
};

TEST_F(FlagsTest, TheCommandLineComesBeforeTheEnvironmentBeforeTheFile) {
  Set("FLAGS_TEST_NAME", "environment");
  Set("FLAGS_TEST_COUNT", "2");
  const std::string file = File(
      "# a comment\nname = \"file\"\ncount = 3\nwait_seconds = 4.5\npeers = [\"a:1\", \"b:2\"]\n");
  ASSERT_OK(Parse({"--name", "line", "--config", file}));
  EXPECT_EQ(name_, "line");
  EXPECT_EQ(count_, 2);
  EXPECT_EQ(wait_seconds_, 4.5);
  EXPECT_THAT(peers_, ElementsAre("a:1", "b:2"));
}

TEST_F(FlagsTest, AListInTheEnvironmentIsSplitAsOnTheLine) {
  Set("FLAGS_TEST_NAME", "n");
  Set("FLAGS_TEST_PEERS", "a:1,b:2,c:3");
  ASSERT_OK(Parse({}));
  EXPECT_THAT(peers_, ElementsAre("a:1", "b:2", "c:3"));
  EXPECT_EQ(count_, 7);
}

TEST_F(FlagsTest, TheFileMayBeNamedByTheEnvironment) {
  Set("FLAGS_TEST_CONFIG", File("name = \"file\"\n"));
  ASSERT_OK(Parse({}));
  EXPECT_EQ(name_, "file");
}

TEST_F(FlagsTest, OneErrorTellsAll) {
  Set("FLAGS_TEST_COUNT", "many");
  Set("FLAGS_TEST_COLOUR", "red");
  const absl::Status status =
      Parse({"--wait_seconds", "61", "--bogus", "--config", File("size = 3\n[part]\nname = 1\n")});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(
      std::string(status.message()),
      AllOf(HasSubstr("--name is required"), HasSubstr("--wait_seconds: Value 61"),
            HasSubstr("--count"), HasSubstr("many"), HasSubstr("FLAGS_TEST_COLOUR"),
            HasSubstr("unknown: --bogus"), HasSubstr("sets size"), HasSubstr("sets part.name")));
}

TEST_F(FlagsTest, AFileThatIsNotThereIsAnError) {
  EXPECT_THAT(std::string(Parse({"--name", "n", "--config", dir_.File("none")}).message()),
              HasSubstr("--config: "));
}

TEST_F(FlagsTest, AFolderOrBytesThatAreNoFileOfFlagsAreErrors) {
  EXPECT_THAT(std::string(Parse({"--name", "n", "--config", dir_.path()}).message()),
              HasSubstr("is a folder, want a file"));
  const absl::Status status =
      Parse({"--name", "n", "--config", File("\x1b[2J\xff\x01 = 1\n" + std::string(500, 'x'))});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("sets "), Not(HasSubstr("\x1b")), Not(HasSubstr("\xff"))));
  EXPECT_LT(status.message().size(), 400u);
}

TEST_F(FlagsTest, HelpGroupsAndGivesUnitsAndDefaults) {
  const std::string help = app_.help();
  EXPECT_THAT(help, AllOf(HasSubstr("Names:\n"), HasSubstr("Env:FLAGS_TEST_NAME"),
                          HasSubstr("--wait_seconds SECONDS"), HasSubstr("INT=7")));
  EXPECT_THAT(help, Not(HasSubstr("FLAGS_TEST_HELP")));
}

}  // namespace
}  // namespace conclave
