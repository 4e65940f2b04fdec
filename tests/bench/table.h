#pragma once

#include <time.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "tests/bench/ceilings.h"

namespace conclave {

struct Options {
  int threads = 2;
  std::string isa = "auto";
  std::string only;  // ops whose name contains it
  bool quick = false;
  bool cpu_time = false;  // of the process, over the threads
};

enum class Peak { kFp32, kBf16 };

// What one call costs.
struct Cost {
  double bytes = 0;
  double flops = 0;
  Peak peak = Peak::kBf16;
};

inline double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

inline double SecondsOf(clockid_t clock) {
  timespec now;
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}
inline double WallSeconds() { return SecondsOf(CLOCK_MONOTONIC); }
inline double CpuSeconds() { return SecondsOf(CLOCK_PROCESS_CPUTIME_ID); }

// Prints one line per op: its cost per second and its share of the nearer ceiling, which is
// measured next to every repetition. With CPU time, rates are those of one thread.
class Table {
 public:
  Table(const Options& options, const Device& device)
      : options_(options),
        clock_(options.cpu_time ? CpuSeconds : WallSeconds),
        ceilings_(device, options.quick ? size_t{256} << 20 : size_t{1} << 30, clock_),
        repetitions_(options.quick ? 3 : 9) {
    std::printf("%d threads, %s, median of %d%s\n", options.threads,
                std::string(CpuIsaName(device.isa)).c_str(), repetitions_,
                options.cpu_time ? ", CPU time" : "");
    std::printf("%-44s %10s %8s %9s %7s %7s  %s\n", "op", "us", "GB/s", "GFLOP/s", "share", "best",
                "of");
  }

  bool Wants(const std::string& name) const { return name.find(options_.only) != name.npos; }

  // `call` runs the op `calls` times; cost is of one.
  void Row(const std::string& name, const Cost& cost, int calls,
           const std::function<void()>& call) {
    if (!Wants(name)) return;
    call();  // first touch
    std::vector<double> seconds, read_shares, compute_shares;
    for (int i = 0; i < repetitions_; ++i) {
      const double read = ceilings_.ReadBytesPerSecond();
      const double compute = cost.peak == Peak::kBf16 ? ceilings_.Bf16FlopsPerSecond()
                                                      : ceilings_.Fp32FlopsPerSecond();
      const double start = clock_();
      call();
      const double time = (clock_() - start) / calls;
      seconds.push_back(time);
      read_shares.push_back(cost.bytes / time / read);
      compute_shares.push_back(cost.flops / time / compute);
    }
    const bool memory_bound = Median(read_shares) >= Median(compute_shares);
    const std::vector<double>& shares = memory_bound ? read_shares : compute_shares;
    const double time = Median(seconds);
    std::printf("%-44s %10.1f %8.1f %9.1f %6.0f%% %6.0f%%  %s\n", name.c_str(), time * 1e6,
                cost.bytes / time / 1e9, cost.flops / time / 1e9, 100 * Median(shares),
                100 * *std::max_element(shares.begin(), shares.end()),
                memory_bound ? "read" : (cost.peak == Peak::kBf16 ? "bf16" : "fp32"));
    std::fflush(stdout);
  }

  void CeilingRows() {
    std::vector<double> read, fp32, bf16;
    for (int i = 0; i < repetitions_; ++i) {
      read.push_back(ceilings_.ReadBytesPerSecond());
      fp32.push_back(ceilings_.Fp32FlopsPerSecond());
      bf16.push_back(ceilings_.Bf16FlopsPerSecond());
    }
    auto best = [](const std::vector<double>& v) { return *std::max_element(v.begin(), v.end()); };
    std::printf("%-44s %10s %8.1f %9s  best %.1f\n", "ceiling: read", "", Median(read) / 1e9, "",
                best(read) / 1e9);
    std::printf("%-44s %10s %8s %9.1f  best %.1f\n", "ceiling: fp32 multiply-add", "", "",
                Median(fp32) / 1e9, best(fp32) / 1e9);
    std::printf("%-44s %10s %8s %9.1f  best %.1f\n", "ceiling: bf16 multiply-add", "", "",
                Median(bf16) / 1e9, best(bf16) / 1e9);
  }

 private:
  const Options& options_;
  double (*clock_)();
  Ceilings ceilings_;
  const int repetitions_;
};

}  // namespace conclave
