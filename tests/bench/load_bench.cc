// Times loading a checkpoint as a worker that hosts every expert does it: how fast weights are
// packed, and what memory that takes at its peak beside the weights. Twice, because the first time
// may read from the disk.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "common/status_macros.h"
#include "expert_shard/expert_runner.h"
#include "expert_shard/weight_loader.h"
#include "model/fingerprint.h"
#include "model/qwen3_config.h"
#include "worker/weights.h"

namespace conclave {
namespace {

struct LoadOptions {
  std::string model = "models/demo";
  std::string weight_dtype = "auto";
  int threads = 2;
};

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// A line of /proc/self/status, in GB.
double MemoryGigabytes(const std::string& key) {
  std::ifstream file("/proc/self/status");
  std::string word;
  while (file >> word) {
    double kilobytes = 0;
    if (word == key && file >> kilobytes) return kilobytes * 1024 / 1e9;
    std::getline(file, word);
  }
  return 0;
}

void PrintRow(const char* what, double bytes, double seconds) {
  std::printf("%-28s %7.2f s %7.2f GB %7.2f GB/s\n", what, seconds, bytes / 1e9,
              bytes / seconds / 1e9);
  std::fflush(stdout);
}

absl::Status LoadOnce(const LoadOptions& options, const Qwen3Config& config) {
  ASSIGN_OR_RETURN(const WeightDtype dtype, ChooseWeightDtype(options.weight_dtype, config));
  ThreadPool pool(options.threads);
  const Device device{.isa = DetectCpuIsa(), .pool = &pool};
  const Clock::time_point start = Clock::now();
  ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(options.model));
  RETURN_IF_ERROR(Fingerprint(*checkpoint, config).status());
  PrintRow("open and fingerprint", 0, SecondsSince(start));

  const Clock::time_point worker_start = Clock::now();
  ASSIGN_OR_RETURN(const WorkerWeights weights,
                   LoadWorkerWeights(*checkpoint, config, dtype, &pool, [](int, int) {}));
  double worker_bytes = static_cast<double>(weights.lm_head.bytes());
  for (const LayerWeights& layer : weights.layers) {
    for (const PackedMatrix* matrix :
         {&layer.qkv_proj, &layer.o_proj, &layer.gate, &layer.gate_up_proj, &layer.down_proj}) {
      worker_bytes += static_cast<double>(matrix->bytes());
    }
  }
  PrintRow("worker weights", worker_bytes, SecondsSince(worker_start));

  double expert_bytes = 0;
  std::unique_ptr<ExpertRunner> experts;
  if (config.num_experts > 0) {
    const Clock::time_point expert_start = Clock::now();
    std::vector<int> ids(config.num_experts);
    std::iota(ids.begin(), ids.end(), 0);
    ASSIGN_OR_RETURN(experts, ExpertRunner::Load(*checkpoint, config, ids, dtype, device));
    expert_bytes = static_cast<double>(experts->weight_bytes());
    PrintRow("experts", expert_bytes, SecondsSince(expert_start));
  }
  PrintRow("all", worker_bytes + expert_bytes, SecondsSince(start));
  std::printf("%-28s anonymous %.2f GB, mapped %.2f GB, peak of both %.2f GB\n\n", "memory",
              MemoryGigabytes("RssAnon:"), MemoryGigabytes("RssFile:"), MemoryGigabytes("VmHWM:"));
  return absl::OkStatus();
}

absl::Status Run(const LoadOptions& options) {
  ASSIGN_OR_RETURN(const Qwen3Config config, LoadQwen3Config(options.model));
  RETURN_IF_ERROR(LoadOnce(options, config));
  return LoadOnce(options, config);
}

}  // namespace
}  // namespace conclave

int main(int argc, char** argv) {
  conclave::LoadOptions options;
  CLI::App app("Times loading a checkpoint");
  app.add_option("--model", options.model, "Directory of the checkpoint")->capture_default_str();
  app.add_option("--weight_dtype", options.weight_dtype, "as conclave-worker takes it")
      ->capture_default_str();
  app.add_option("--threads", options.threads, "threads of the pool")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = conclave::Run(options);
  if (status.ok()) return 0;
  std::fprintf(stderr, "load_bench: %s\n", status.ToString().c_str());
  return 1;
}
