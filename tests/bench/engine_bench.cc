// Times a worker's engine in this process, without gRPC: decode of 1 and of 16 sequences and
// prefill of 512 tokens. Each is compared with the least time the machine could take (see
// client/roofline.h) at the read bandwidth and the BF16 rate measured next to every repetition.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/roofline.h"
#include "common/check.h"
#include "tests/bench/ceilings.h"
#include "tests/bench/engine_subject.h"
#include "tests/bench/table.h"
#include "worker/worker_runtime.h"

namespace conclave {
namespace {

constexpr int kPromptTokens = 16;    // of decode; its KV is nothing beside the weights
constexpr int kPrefillTokens = 512;  // one step of the default size

struct EngineBenchOptions {
  std::vector<std::string> models = {"models/demo"};
  int threads = 2;
  std::string isa = "auto";
  int new_tokens = 32;
  bool quick = false;
};

class EngineTable {
 public:
  EngineTable(const EngineBenchOptions& options, CpuIsa isa)
      : pool_(options.threads),
        ceilings_({isa, &pool_}, options.quick ? size_t{256} << 20 : size_t{1} << 30, WallSeconds),
        repetitions_(options.quick ? 3 : 7) {
    std::printf("engine: %d threads, %s, median of %d; the floor reads each weight once a step\n",
                options.threads, std::string(CpuIsaName(isa)).c_str(), repetitions_);
    std::printf("%8s %6s  %-34s %11s %10s %10s %8s %9s\n", "of floor", "best", "what", "tokens/s",
                "ms a step", "floor, ms", "GB/s", "GFLOP/s");
  }

  // `seconds` runs a step of `tokens`; `floor` is the least it could take on a device.
  template <typename Seconds, typename Floor>
  void Row(const std::string& name, int tokens, const Seconds& seconds, const Floor& floor) {
    seconds();  // first touch
    std::vector<double> times, floors, shares, reads, rates;
    for (int i = 0; i < repetitions_; ++i) {
      reads.push_back(ceilings_.ReadBytesPerSecond());
      rates.push_back(ceilings_.Bf16FlopsPerSecond());
      times.push_back(seconds());
      floors.push_back(floor({.name = "here",
                              .bandwidth_tbs = reads.back() / 1e12,
                              .bf16_tflops = rates.back() / 1e12,
                              .is_cpu = true}));
      shares.push_back(floors.back() / times.back());
    }
    const double time = Median(times);
    std::printf("%7.0f%% %5.0f%%  %-34s %11.1f %10.2f %10.2f %8.1f %9.0f\n", 100 * Median(shares),
                100 * *std::max_element(shares.begin(), shares.end()), name.c_str(), tokens / time,
                time * 1e3, Median(floors) * 1e3, Median(reads) / 1e9, Median(rates) / 1e9);
    std::fflush(stdout);
  }

 private:
  ThreadPool pool_;
  Ceilings ceilings_;
  const int repetitions_;
};

std::string NameOf(const std::string& model_dir) {
  const std::filesystem::path path(model_dir);
  return (path.has_filename() ? path : path.parent_path()).filename().string();
}

void Measure(const EngineBenchOptions& options, const std::string& model_dir, EngineTable& table) {
  WorkerRuntimeOptions runtime;
  runtime.model_dir = model_dir;
  runtime.threads = options.threads;
  runtime.cpu_isa = options.isa;
  runtime.weight_dtype = "bf16";  // also of an FP8 checkpoint: which the floor counts
  runtime.kv_cache_tokens = 16384;
  Subject subject(runtime);
  const Qwen3Config& config = subject.config();
  const BytesByKind weights = PackedWeightBytes(config, WeightDtype::kBf16);
  const auto roofline = [&](const PlanDevice& device) {
    return Roofline(config, weights, WeightDtype::kBf16, device, /*num_devices=*/1,
                    /*hop_seconds=*/0);
  };
  const std::string name = NameOf(model_dir);
  const int context = kPromptTokens + options.new_tokens / 2;
  for (const int sequences : {1, 16}) {
    table.Row(
        absl::StrCat(name, " decode ", sequences), sequences,
        [&] { return subject.DecodeStepSeconds(sequences, kPromptTokens, options.new_tokens); },
        [&](const PlanDevice& device) {
          return roofline(device).DecodeSeconds(sequences, context);
        });
  }
  table.Row(
      absl::StrCat(name, " prefill ", kPrefillTokens), kPrefillTokens,
      [&] { return subject.PrefillSeconds(kPrefillTokens); },
      [&](const PlanDevice& device) { return roofline(device).PrefillSeconds(kPrefillTokens); });
}

void Run(const EngineBenchOptions& options) {
  const absl::StatusOr<CpuIsa> isa = ParseCpuIsa(options.isa);
  CHECK(isa.ok()) << isa.status().ToString();
  EngineTable table(options, *isa);
  for (const std::string& model : options.models) Measure(options, model, table);
}

}  // namespace
}  // namespace conclave

int main(int argc, char** argv) {
  conclave::EngineBenchOptions options;
  CLI::App app("Times a worker's engine and prints its share of what the machine gives.");
  app.add_option("--model", options.models, "Folders of checkpoints")->capture_default_str();
  app.add_option("--threads", options.threads)->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--isa", options.isa, "auto, plain, avx2, avx512 or avx512_bf16")
      ->capture_default_str();
  app.add_option("--new_tokens", options.new_tokens, "Tokens of each sequence in decode")
      ->check(CLI::Range(4, 4096))
      ->capture_default_str();
  app.add_flag("--quick", options.quick, "Smaller buffers and fewer repetitions");
  CLI11_PARSE(app, argc, argv);
  conclave::Run(options);
  return 0;
}
