#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "common/check.h"
#include "expert_shard/expert_service.h"
#include "model/fingerprint.h"
#include "model/synthetic.h"
#include "rpc/server_runner.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace conclave {

// A synthetic checkpoint in a directory of its own, removed at the end.
class TestModel {
 public:
  explicit TestModel(const Qwen3Config& config, uint64_t seed = 1) : config_(config) {
    SyntheticOptions options;
    options.seed = seed;
    const absl::Status written = WriteSyntheticCheckpoint(config, dir(), options);
    CHECK(written.ok()) << written;
    auto checkpoint = Checkpoint::Open(dir());
    CHECK(checkpoint.ok()) << checkpoint.status();
    checkpoint_ = *std::move(checkpoint);
    auto fingerprint = Fingerprint(*checkpoint_, config_);
    CHECK(fingerprint.ok()) << fingerprint.status();
    fingerprint_ = *std::move(fingerprint);
  }
  TestModel(const TestModel&) = delete;
  TestModel& operator=(const TestModel&) = delete;

  std::string dir() const { return parent_.File("model"); }
  const Qwen3Config& config() const { return config_; }
  const Checkpoint& checkpoint() const { return *checkpoint_; }
  const std::string& fingerprint() const { return fingerprint_; }
  Device device() { return Device{DetectCpuIsa(), &pool_}; }

  std::vector<int> AllExperts() const {
    std::vector<int> all(config_.num_experts);
    std::iota(all.begin(), all.end(), 0);
    return all;
  }
  std::unique_ptr<ExpertRunner> LoadRunner(const std::vector<int>& experts,
                                           WeightDtype dtype = WeightDtype::kBf16) {
    auto runner = ExpertRunner::Load(*checkpoint_, config_, experts, dtype, device());
    CHECK(runner.ok()) << runner.status();
    return *std::move(runner);
  }

 private:
  const Qwen3Config config_;
  const TempDir parent_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::string fingerprint_;
  ThreadPool pool_{2};
};

// A whole shard in this process: runner, batcher, service, server.
class TestShard {
 public:
  TestShard(TestModel& model, const std::vector<int>& experts, uint64_t epoch = 1,
            const std::string& listen = "127.0.0.1:0", bool shared_memory = true,
            WeightDtype dtype = WeightDtype::kBf16, NcclTransport* nccl = nullptr)
      : TestShard(model.LoadRunner(experts, dtype), model, model.fingerprint(), listen, epoch,
                  shared_memory, nccl) {}
  TestShard(std::unique_ptr<ExpertRunner> runner, TestModel& model, const std::string& fingerprint,
            const std::string& listen = "127.0.0.1:0", uint64_t epoch = 1,
            bool shared_memory = true, NcclTransport* nccl = nullptr)
      : metrics_(&registry_, model.config()),
        runner_(std::move(runner)),
        batcher_(runner_.get(), &metrics_),
        service_(&metrics_, shared_memory, nccl) {
    ServerOptions options;
    options.listen = listen;
    options.services = {&service_};
    options.traffic = Traffic::kTensors;
    auto server = ServerRunner::Start(options);
    CHECK(server.ok()) << server.status();
    server_ = *std::move(server);
    service_.Activate(MakeShardDescription("test", model.config(), fingerprint, *runner_, epoch),
                      DispatchRules(model.config(), runner_->expert_ids(), epoch), &batcher_);
    server_->SetServing(true);
  }

  const std::string& target() const { return server_->address(); }
  ExpertService& service() { return service_; }
  TokenBatcher& batcher() { return batcher_; }
  ServerRunner& server() { return *server_; }
  std::string MetricsText() const { return registry_.Text(); }

 private:
  Metrics registry_;
  ShardMetrics metrics_;
  std::unique_ptr<ExpertRunner> runner_;
  TokenBatcher batcher_;
  ExpertService service_;
  std::unique_ptr<ServerRunner> server_;  // first to go: it calls all of the above
};

// Made-up activations, [num_rows, hidden_size] BF16 in about -1..1; equal seeds, equal rows.
inline std::vector<BFloat16> RandomRows(int64_t num_rows, int64_t hidden_size, uint64_t seed) {
  std::vector<BFloat16> rows(static_cast<size_t>(num_rows * hidden_size));
  uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
  for (BFloat16& value : rows) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    value = ToBFloat16(static_cast<float>(static_cast<int32_t>(state >> 32)) * 0x1p-31f);
  }
  return rows;
}

// Distinct experts for each row: [num_rows, num_experts_per_tok].
inline std::vector<int32_t> RandomTopk(const Qwen3Config& config, int64_t num_rows, uint64_t seed) {
  std::vector<int32_t> topk_ids;
  for (int64_t row = 0; row < num_rows; ++row) {
    const auto first = static_cast<int32_t>((row * 7 + static_cast<int64_t>(seed) * 3 + row / 5) %
                                            config.num_experts);
    for (int k = 0; k < config.num_experts_per_tok; ++k) {
      topk_ids.push_back((first + k * 3) % config.num_experts);
    }
  }
  return topk_ids;
}

}  // namespace conclave
