// Steps in two micro-batches against whole ones, with experts on shards behind a wire with latency:
// decode of many sequences and prefill, by a worker in this process.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/log.h"
#include "model/synthetic.h"
#include "tests/bench/delayed_wire.h"
#include "tests/bench/shard_child.h"
#include "tests/bench/table.h"
#include "worker/worker_runtime.h"

namespace conclave {
namespace {

constexpr int kShards = 2;

struct BenchOptions {
  std::vector<double> latencies_ms = {0, 0.2, 1, 5};
  int sequences = 16;
  int context = 1024;
  int new_tokens = 64;
  int prefill = 512;
  int layers = 4;
  int threads = 2;
  int repeat = 3;
};

// Attention of Qwen3-0.6B and few narrow experts: the shards stand for other machines, whose
// computing would otherwise take this one's cores from the worker.
Qwen3Config BenchConfig(int layers) {
  Qwen3Config config = TinyMoeConfig();
  config.num_hidden_layers = layers;
  config.hidden_size = 1024;
  config.num_attention_heads = 16;
  config.num_key_value_heads = 8;
  config.head_dim = 128;
  config.max_position_embeddings = 8192;
  return config;
}

class TimingSink : public TokenSink {
 public:
  void OnEvent(v1::TokenEvent event) override {
    absl::MutexLock lock(&mutex_);
    times_.insert(times_.end(), event.ids_size(), WallSeconds());
  }
  void OnDone(const absl::Status& status) override {
    CHECK(status.ok()) << status;
    absl::MutexLock lock(&mutex_);
    done_ = true;
  }
  bool Writable() const override { return true; }
  bool Cancelled() const override { return false; }
  std::vector<double> Wait() {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&done_));
    return times_;
  }

 private:
  absl::Mutex mutex_;
  std::vector<double> times_ ABSL_GUARDED_BY(mutex_);
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
};

class Worker {
 public:
  Worker(const BenchOptions& bench, const std::string& model,
         const std::vector<std::string>& shards, const std::string& micro_batch) {
    WorkerRuntimeOptions options;
    options.model_dir = model;
    options.shards = shards;
    options.threads = bench.threads;
    options.kv_cache_tokens = bench.sequences * (bench.context + bench.new_tokens + 64);
    options.transports.shared_memory = false;
    options.prefix_cache = false;
    options.micro_batch = micro_batch;
    runtime_ = ValueOrDie(WorkerRuntime::Open(options));
    const absl::Status loaded = runtime_->Load(metrics_, [](absl::string_view) {});
    CHECK(loaded.ok()) << loaded;
  }

  // Tokens a second while all sequences decode together.
  double DecodeRate(int sequences, int context, int new_tokens) {
    std::vector<std::shared_ptr<TimingSink>> sinks;
    for (int i = 0; i < sequences; ++i) sinks.push_back(Submit(context, new_tokens));
    double begin = 0, end = std::numeric_limits<double>::infinity();
    std::vector<double> all;
    for (const auto& sink : sinks) {
      const std::vector<double> times = sink->Wait();
      begin = std::max(begin, times.front());
      end = std::min(end, times.back());
      all.insert(all.end(), times.begin(), times.end());
    }
    const auto tokens = std::count_if(all.begin(), all.end(),
                                      [&](double time) { return time > begin && time <= end; });
    CHECK(tokens > 0) << "sequences did not run together: give more --new_tokens";
    return static_cast<double>(tokens) / (end - begin);
  }

  double PrefillRate(int tokens) {
    const double begin = WallSeconds();
    return tokens / (Submit(tokens, 1)->Wait().front() - begin);
  }

  double SplitShare() const {
    const auto count = [&](const std::string& name) {
      const std::string text = metrics_.Text();
      const std::string line = "\n" + name + " ";
      return std::stod(text.substr(text.find(line) + line.size()));
    };
    return count("conclave_worker_split_steps_total") / count("conclave_worker_steps_total");
  }

 private:
  std::shared_ptr<TimingSink> Submit(int prompt_tokens, int new_tokens) {
    v1::TokenRequest request;
    request.set_request_id(absl::StrCat("bench-", num_requests_++));
    for (int i = 0; i < prompt_tokens; ++i) {
      request.add_prompt_ids(static_cast<uint32_t>(random_() % 200));
    }
    request.set_max_tokens(static_cast<uint32_t>(new_tokens));
    request.set_ignore_eos(true);
    auto sink = std::make_shared<TimingSink>();
    const absl::Status status = runtime_->engine().Submit(request, absl::InfiniteFuture(), sink);
    CHECK(status.ok()) << status;
    return sink;
  }

  Metrics metrics_;  // outlives the runtime
  std::unique_ptr<WorkerRuntime> runtime_;
  std::mt19937 random_{1};
  int num_requests_ = 0;
};

void RunLatency(const BenchOptions& options, const std::string& model,
                const std::vector<std::string>& shards, double latency_ms) {
  std::vector<std::string> targets;
  for (const std::string& shard : shards) {
    // Half of a round trip each way.
    targets.push_back(DelayedWire::To(shard, absl::Milliseconds(latency_ms / 2)));
  }
  std::vector<std::unique_ptr<Worker>> workers;
  for (const char* mode : {"off", "on", "auto"}) {
    workers.push_back(std::make_unique<Worker>(options, model, targets, mode));
    workers.back()->PrefillRate(options.prefill);  // connected and warm
    workers.back()->DecodeRate(options.sequences, options.context, options.new_tokens);
  }
  const auto row = [&](const std::string& what, auto&& measure) {
    std::vector<std::vector<double>> rates(workers.size()), ratios(workers.size());
    for (int i = 0; i < options.repeat; ++i) {
      for (size_t w = 0; w < workers.size(); ++w) {
        rates[w].push_back(measure(*workers[w]));
        ratios[w].push_back(rates[w].back() / rates[0].back());
      }
    }
    std::printf("%6.1f ms  %-14s %9.1f %9.1f (%4.2fx) %9.1f (%4.2fx)\n", latency_ms, what.c_str(),
                Median(rates[0]), Median(rates[1]), Median(ratios[1]), Median(rates[2]),
                Median(ratios[2]));
    std::fflush(stdout);
  };
  row(absl::StrCat("decode x", options.sequences), [&](Worker& worker) {
    return worker.DecodeRate(options.sequences, options.context, options.new_tokens);
  });
  row(absl::StrCat("prefill ", options.prefill),
      [&](Worker& worker) { return worker.PrefillRate(options.prefill); });
  std::printf("           auto split %.0f %% of its steps\n", 100 * workers[2]->SplitShare());
}

void RunBench(const BenchOptions& options) {
  const Qwen3Config config = BenchConfig(options.layers);
  std::string dir = (std::filesystem::temp_directory_path() / "overlap_bench.XXXXXX").string();
  CHECK(mkdtemp(dir.data()) != nullptr);
  const std::string model = dir + "/model";
  const absl::Status written = WriteSyntheticCheckpoint(config, model);
  CHECK(written.ok()) << written;
  std::vector<std::unique_ptr<Child>> children;
  std::vector<std::string> shards;
  for (int shard = 0; shard < kShards; ++shard) {
    children.push_back(std::make_unique<Child>(
        [&](int fd) { RunShard(model, config, /*threads=*/1, kShards, shard, fd); }));
    shards.push_back(ReadAddress(children.back()->fd()));
  }
  std::printf("tokens/s, %d sequences of %d tokens, %d layers, %d threads, %d shards, by gRPC\n",
              options.sequences, options.context, options.layers, options.threads, kShards);
  std::printf("%9s  %-14s %9s %19s %19s\n", "latency", "", "whole", "split", "auto");
  for (const double latency : options.latencies_ms) RunLatency(options, model, shards, latency);
  std::filesystem::remove_all(dir);
}

}  // namespace
}  // namespace conclave

int main(int argc, char** argv) {
  conclave::BenchOptions options;
  CLI::App app("Steps in two micro-batches against whole ones, over a wire with latency.");
  app.add_option("--latency_ms", options.latencies_ms, "Added to a round trip")
      ->capture_default_str();
  app.add_option("--sequences", options.sequences)->capture_default_str();
  app.add_option("--context", options.context, "Tokens of each prompt")->capture_default_str();
  app.add_option("--new_tokens", options.new_tokens)->capture_default_str();
  app.add_option("--prefill", options.prefill, "Tokens of the prompt that is timed")
      ->capture_default_str();
  app.add_option("--layers", options.layers)->capture_default_str();
  app.add_option("--threads", options.threads, "Of the worker")->capture_default_str();
  app.add_option("--repeat", options.repeat)->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  CHECK(conclave::InitLog("overlap_bench", "error").ok());
  conclave::RunBench(options);
  return 0;
}
