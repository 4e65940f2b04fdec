// conclave-router as a process: what it says, how it ends.

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "common/check.h"
#include "nlohmann/json.hpp"
#include "rpc/address.h"
#include "rpc/channel.h"
#include "tests/router/test_http.h"
#include "tests/router/test_router.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace conclave {
namespace {

using ::testing::HasSubstr;

// A child process whose stdout is read line by line; stderr is kept in a file.
class Process {
 public:
  explicit Process(const std::vector<std::string>& flags) : stderr_path_(dir_.File("stderr")) {
    std::vector<std::string> words = {std::string(CONCLAVE_BIN_DIR) + "/conclave-router"};
    words.insert(words.end(), flags.begin(), flags.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    int pipe_ends[2];
    CHECK_EQ(pipe2(pipe_ends, O_CLOEXEC), 0);
    const int log = open(stderr_path_.c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    CHECK(log >= 0);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(pipe_ends[1], STDOUT_FILENO);
      dup2(log, STDERR_FILENO);
      execv(argv[0], argv.data());
      _exit(127);
    }
    close(pipe_ends[1]);
    close(log);
    stdout_ = fdopen(pipe_ends[0], "r");
  }
  ~Process() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    fclose(stdout_);
  }

  // The next line; empty at the end.
  std::string ReadLine() {
    char* line = nullptr;
    size_t capacity = 0;
    const ssize_t length = getline(&line, &capacity, stdout_);
    const std::string text = length > 0 ? std::string(line, length) : "";
    free(line);
    return text;
  }
  void Terminate() { kill(pid_, SIGTERM); }
  int Wait() {
    int status = 0;
    CHECK_EQ(waitpid(pid_, &status, 0), pid_);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  std::string Stderr() const {
    FILE* file = fopen(stderr_path_.c_str(), "r");
    std::string text(1 << 16, '\0');
    text.resize(fread(text.data(), 1, text.size(), file));
    fclose(file);
    return text;
  }

 private:
  const TempDir dir_;
  const std::string stderr_path_;
  pid_t pid_ = -1;
  FILE* stdout_ = nullptr;
};

TEST(RouterProcess, ServesUntilItIsTold) {
  FakeWorker worker;
  Process process({"--model", TestModelDir(), "--model_name", "tiny", "--workers", worker.target(),
                   "--listen", "127.0.0.1:0", "--drain_seconds", "20"});
  const nlohmann::json listening = nlohmann::json::parse(process.ReadLine());
  EXPECT_EQ(listening["event"], "listening");
  EXPECT_EQ(listening["metrics"], listening["http"]) << "one port for both";
  ASSERT_OK_AND_ASSIGN(const HostPort http, ParseHostPort(listening["http"].get<std::string>()));
  EXPECT_EQ(process.ReadLine(), "{\"event\":\"ready\"}\n");
  const auto stub = v1::Inference::NewStub(MakeChannel(listening["grpc"].get<std::string>()));

  worker.PauseAfter(2);
  ChatCall call;
  call.reader = stub->Chat(&call.context, UserSays("hi"));
  RawClient stream(http.port);
  stream.Request("POST", "/v1/chat/completions",
                 R"({"stream": true, "messages": [{"role": "user", "content": "hi"}]})");
  ASSERT_TRUE(worker.WaitForPaused(2));
  EXPECT_EQ(Fetch(http.port, "GET", "/health").status, 200);
  EXPECT_EQ(Fetch(http.port, "GET", "/metrics").status, 200);
  process.Terminate();
  // It drains: what it accepted goes on, nothing new is.
  EXPECT_TRUE(Eventually([&] {
    ChatCall refused;
    refused.reader = stub->Chat(&refused.context, UserSays("hi"));
    v1::ChatEvent event;
    if (refused.Read(&event)) {
      refused.context.TryCancel();
      return false;
    }
    return refused.Finish().error_code() == grpc::StatusCode::UNAVAILABLE;
  }));
  EXPECT_EQ(Fetch(http.port, "GET", "/health").status, 503);
  worker.Continue();
  EXPECT_OK(ReadAll(call).status);
  EXPECT_THAT(stream.ReadResponse().body, HasSubstr("data: [DONE]"));
  EXPECT_EQ(process.Wait(), 0);
}

TEST(RouterProcess, ErrorsAtTheStartAreOneLine) {
  const auto expect_error = [](const std::vector<std::string>& flags, const std::string& words,
                               int code = 1) {
    Process process(flags);
    EXPECT_EQ(process.ReadLine(), "") << words;
    EXPECT_EQ(process.Wait(), code) << words;
    EXPECT_THAT(process.Stderr(), HasSubstr(words));
  };
  expect_error({"--model", "/nonexistent", "--workers", "a:1", "--listen", "127.0.0.1:0"},
               "/nonexistent");
  expect_error({"--model", TestModelDir(), "--workers", "a:1", "--chat_template", "llama"},
               "--chat_template: llama not in", 2);
  expect_error({"--model", TestModelDir(), "--workers", "a:1", "--budget_ceilings", "/none.json"},
               "--budget_ceilings: /none.json", 2);
  expect_error({"--model", TestModelDir(), "--workers", "a:1,a:1"}, "names a:1 twice", 2);
  expect_error({"--model", TestModelDir(), "--workers", "a:1", "--http_listen", "nonsense"},
               "nonsense", 2);
  FakeWorker other;
  expect_error({"--model", TestModelDir(), "--workers", "a:1", "--listen", other.target()},
               other.target());
  expect_error({"--model", TestModelDir(), "--workers", "a:1", "--listen", "127.0.0.1:0",
                "--http_listen", other.target()},
               absl::StrCat("cannot listen for HTTP on ", other.target()));
}

TEST(RouterProcess, OneErrorListsAllThatIsWrong) {
  setenv("CONCLAVE_ROUTER_MAX_INFLIHGT", "3", 1);
  setenv("CONCLAVE_ROUTER_HTTP_THREADS", "1000", 1);
  const TempDir dir;
  const std::string config = dir.File("router.toml");
  FILE* file = fopen(config.c_str(), "w");
  fputs("drain_seconds = -1\nmodle = \"/m\"\n", file);
  fclose(file);
  Process process({"--workers", "a:1,a:1", "--listen", "nonsense", "--config", config});
  unsetenv("CONCLAVE_ROUTER_MAX_INFLIHGT");
  unsetenv("CONCLAVE_ROUTER_HTTP_THREADS");
  EXPECT_EQ(process.Wait(), 2);
  const std::string said = process.Stderr();
  for (const char* wrong : {"CONCLAVE_ROUTER_MAX_INFLIHGT is set", "--http_threads: Value 1000",
                            "--drain_seconds: Value -1", "sets modle", "--model is required",
                            "names a:1 twice", "--listen: address is \"nonsense\""}) {
    EXPECT_THAT(said, HasSubstr(wrong));
  }
  EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
}

TEST(RouterProcess, FlagsAreChecked) {
  for (const std::vector<std::string>& flags :
       {std::vector<std::string>{"--workers", "a:1"},
        {"--model", TestModelDir()},
        {"--model", TestModelDir(), "--workers", "a:1", "--max_inflight", "0"},
        {"--model", TestModelDir(), "--workers", "a:1", "--default_mode", "sometimes"},
        {"--model", TestModelDir(), "--workers", "a:1", "--log_level", "loud"},
        {"--model", TestModelDir(), "--workers", "a:1", "--http_threads", "0"}}) {
    Process process(flags);
    EXPECT_EQ(process.ReadLine(), "");
    EXPECT_NE(process.Wait(), 0);
    EXPECT_NE(process.Stderr(), "");
  }
}

}  // namespace
}  // namespace conclave
