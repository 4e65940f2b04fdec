// Times a worker's engine on a GPU at full shapes, without a checkpoint: made-up weights of a
// released model, decode at several batch sizes and prefill, each beside the least time this card
// could take (client/roofline.h) at the bandwidth of a copy that is measured in the same run.
//
//   cuda_engine_bench --config qwen3-30b-a3b --dtype fp8
//   cuda_engine_bench --config qwen3-235b-a22b --dtype fp8 --experts_of 4 --batch 32,128 --prefill
//   512
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "client/roofline.h"
#include "common/status_macros.h"
#include "kernels/cuda/runtime.h"
#include "model/known_models.h"
#include "model/synthetic.h"
#include "tests/bench/engine_subject.h"
#include "tests/support/temp_dir.h"
#include "worker/cuda/open_cuda_decoder.h"

namespace conclave {
namespace {

struct BenchOptions {
  std::string config = "qwen3-30b-a3b";
  std::string dtype = "bf16";
  std::string device = "cuda";
  std::vector<int> batches = {1, 8, 32, 64, 128, 256};
  std::vector<int> prefills = {512, 2048, 8192};
  int context = 1024;
  int new_tokens = 128;
  int experts_of = 1;
  int layers = 0;
  int repetitions = 5;
  int copy_log2_mib = 10;
  double bf16_tflops = 989;
  double fp8_tflops = 1979;
  double memory_utilization = 0.9;
  bool deterministic = true;
  bool programmatic_launch = false;
};

// Bytes a second that copies of so many bytes on the device read and write, the median.
absl::StatusOr<double> CopyBandwidth(int repetitions, size_t bytes) {
  ASSIGN_OR_RETURN(const cuda::Stream stream, cuda::Stream::Create());
  ASSIGN_OR_RETURN(const cuda::DeviceMemory from, cuda::DeviceMemory::Allocate(bytes));
  ASSIGN_OR_RETURN(const cuda::DeviceMemory to, cuda::DeviceMemory::Allocate(bytes));
  std::vector<double> rates;
  for (int i = 0; i <= repetitions; ++i) {
    RETURN_IF_ERROR(stream.Synchronize());
    const double begin = WallSeconds();
    RETURN_IF_ERROR(cuda::CopyOnDevice(to.As<char>(), from.As<char>(), bytes, stream));
    RETURN_IF_ERROR(stream.Synchronize());
    if (i > 0) rates.push_back(2 * static_cast<double>(bytes) / (WallSeconds() - begin));
  }
  return Median(rates);
}

// The model's shape; with experts_of N what one card of N computes: its part of every layer's
// experts, and of each token's choices.
absl::StatusOr<Qwen3Config> MakeConfig(const BenchOptions& options) {
  Qwen3Config config = TinyMoeConfig();
  config.head_dim = 32;  // which the kernels have
  if (options.config != "tiny-moe") {
    ASSIGN_OR_RETURN(config, KnownModel(options.config));
  }
  if (options.dtype == "fp8") config.quantization = WeightQuantization::kFp8Block128;
  if (config.num_experts % options.experts_of != 0 ||
      config.num_experts_per_tok % options.experts_of != 0) {
    return absl::InvalidArgumentError(absl::StrCat("--experts_of is ", options.experts_of,
                                                   ", want a divisor of ", config.num_experts,
                                                   " and ", config.num_experts_per_tok));
  }
  config.num_experts /= options.experts_of;
  config.num_experts_per_tok /= options.experts_of;
  if (options.layers > 0) config.num_hidden_layers = options.layers;
  return config;
}

class Report {
 public:
  Report(const BenchOptions& options, const Qwen3Config& config, double bandwidth)
      : repetitions_(options.repetitions),
        roofline_(config, StoredWeightBytes(config), CheckpointDtype(config),
                  {.name = "here",
                   .bandwidth_tbs = bandwidth / 1e12,
                   .bf16_tflops = options.bf16_tflops,
                   .fp8_tflops = options.fp8_tflops},
                  /*num_devices=*/1, /*hop_seconds=*/0) {
    std::printf("%-24s %11s %11s %9s %11s\n", "what", "ms", "floor, ms", "of floor", "tokens/s");
  }

  const Roofline& roofline() const { return roofline_; }

  template <typename Seconds>
  void Row(const std::string& name, int tokens, double floor, const Seconds& seconds) {
    seconds();  // records graphs; chooses the library's kernels
    std::vector<double> times;
    for (int i = 0; i < repetitions_; ++i) times.push_back(seconds());
    const double time = Median(times);
    std::printf("%-24s %11.3f %11.3f %8.1f%% %11.0f\n", name.c_str(), time * 1e3, floor * 1e3,
                100 * floor / time, tokens / time);
    std::fflush(stdout);
  }

 private:
  const int repetitions_;
  const Roofline roofline_;
};

absl::Status Run(const BenchOptions& options) {
  ASSIGN_OR_RETURN(const int ordinal, cuda::ParseCudaDevice(options.device));
  ASSIGN_OR_RETURN(const cuda::DeviceInfo info, cuda::QueryDevice(ordinal));
  ASSIGN_OR_RETURN(const Qwen3Config config, MakeConfig(options));
  ASSIGN_OR_RETURN(const double bandwidth,
                   CopyBandwidth(options.repetitions, size_t{1} << 20 << options.copy_log2_mib));
  std::printf(
      "%s; a copy reads and writes %.2f TB/s; %s in %s, 1/%d of the experts, %s, median of %d\n",
      info.ToString().c_str(), bandwidth / 1e12, options.config.c_str(), options.dtype.c_str(),
      options.experts_of, options.deterministic ? "deterministic" : "not deterministic",
      options.repetitions);
  const TempDir dir;
  dir.Write("config.json", FormatQwen3Config(config));
  WorkerRuntimeOptions runtime;
  runtime.model_dir = dir.path();
  runtime.device = options.device;
  runtime.load_format = "dummy";
  runtime.open_device = OpenCudaDecoder;
  runtime.deterministic = options.deterministic;
  runtime.programmatic_launch = options.programmatic_launch;
  runtime.gpu_memory_utilization = options.memory_utilization;
  runtime.prefix_cache = false;
  runtime.max_running = *std::max_element(options.batches.begin(), options.batches.end());
  runtime.max_step_tokens = limits::kMaxStepTokens;
  Subject subject(runtime);
  Report report(options, config, bandwidth);
  for (const int batch : options.batches) {
    const std::string name = absl::StrCat("decode, batch ", batch);
    const int64_t wanted = int64_t{batch} * (options.context + options.new_tokens);
    if (wanted > subject.kv_tokens()) {
      std::printf("%-24s does not fit: KV of %ld tokens, %ld are left\n", name.c_str(), wanted,
                  subject.kv_tokens());
      continue;
    }
    report.Row(
        name, batch,
        report.roofline().DecodeSeconds(batch, options.context + options.new_tokens / 2),
        [&] { return subject.DecodeStepSeconds(batch, options.context, options.new_tokens); });
  }
  for (const int tokens : options.prefills) {
    report.Row(absl::StrCat("prefill, ", tokens), tokens, report.roofline().PrefillSeconds(tokens),
               [&] { return subject.PrefillSeconds(tokens); });
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace conclave

int main(int argc, char** argv) {
  conclave::BenchOptions options;
  CLI::App app("Times a worker's engine on a GPU at full shapes with made-up weights.");
  app.add_option("--config", options.config, "A released model, or tiny-moe")
      ->capture_default_str();
  app.add_option("--dtype", options.dtype)
      ->check(CLI::IsMember({"bf16", "fp8"}))
      ->capture_default_str();
  app.add_option("--device", options.device, "cuda or cuda:N")->capture_default_str();
  app.add_option("--batch", options.batches, "Sequences of decode")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--prefill", options.prefills, "Tokens of prompts")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--context", options.context, "Tokens of KV when decode begins")
      ->check(CLI::Range(1, 131072))
      ->capture_default_str();
  app.add_option("--new_tokens", options.new_tokens,
                 "Of each sequence; more than the steps its prompts take")
      ->check(CLI::Range(4, 4096))
      ->capture_default_str();
  app.add_option("--experts_of", options.experts_of, "Only the experts of one card of so many")
      ->check(CLI::Range(1, 128))
      ->capture_default_str();
  app.add_option("--layers", options.layers, "Keep the first layers only; 0: all")
      ->check(CLI::Range(0, 1000));
  app.add_option("--repetitions", options.repetitions)
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  app.add_option("--copy_log2_mib", options.copy_log2_mib, "Size of the copy: 2^N MiB")
      ->check(CLI::Range(0, 12))
      ->capture_default_str();
  app.add_option("--bf16_tflops", options.bf16_tflops, "Of the card, dense: H100 989, H20 148")
      ->capture_default_str();
  app.add_option("--fp8_tflops", options.fp8_tflops, "H100 1979, H20 296")->capture_default_str();
  app.add_option("--gpu_memory_utilization", options.memory_utilization)->capture_default_str();
  app.add_option("--deterministic", options.deterministic, "As the worker's flag")
      ->capture_default_str();
  app.add_option("--programmatic_launch", options.programmatic_launch, "As the worker's flag")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = conclave::Run(options);
  if (status.ok()) return 0;
  std::cerr << "cuda_engine_bench: " << status.message() << std::endl;
  return 1;
}
