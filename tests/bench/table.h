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
  std::vector<std::string> weight_dtypes = {"bf16", "int8", "int4", "fp8"};
  bool quick = false;
  bool cpu_time = false;  // of the process, over the threads
};

enum class Peak { kFp32, kBf16, kInt8 };

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

// Prints the ceilings, then one line per op: its share of the nearer one, which is measured next to
// every repetition, and its cost per second. With CPU time, rates are those of one thread.
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
      const double compute = ComputeCeiling(cost.peak);
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
    std::printf("%5.0f%% %5.0f%%  %-4s %8.1f %9.1f %10.1f  %s\n", 100 * Median(shares),
                100 * *std::max_element(shares.begin(), shares.end()),
                memory_bound ? "read" : PeakName(cost.peak), cost.bytes / time / 1e9,
                cost.flops / time / 1e9, time * 1e6, name.c_str());
    std::fflush(stdout);
  }

  void CeilingRows() {
    std::vector<double> read;
    for (int i = 0; i < repetitions_; ++i) read.push_back(ceilings_.ReadBytesPerSecond());
    std::printf("ceilings: read %.1f GB/s", Median(read) / 1e9);
    for (const Peak peak : {Peak::kFp32, Peak::kBf16, Peak::kInt8}) {
      std::vector<double> rates;
      for (int i = 0; i < repetitions_; ++i) rates.push_back(ComputeCeiling(peak));
      std::printf(", %s %.0f G/s", PeakName(peak), Median(rates) / 1e9);
    }
    std::printf("\n%6s %6s  %-4s %8s %9s %10s  %s\n", "share", "best", "of", "GB/s", "GFLOP/s",
                "us", "op");
  }

 private:
  static const char* PeakName(Peak peak) {
    return peak == Peak::kFp32 ? "fp32" : peak == Peak::kBf16 ? "bf16" : "int8";
  }
  double ComputeCeiling(Peak peak) {
    return peak == Peak::kFp32   ? ceilings_.Fp32FlopsPerSecond()
           : peak == Peak::kBf16 ? ceilings_.Bf16FlopsPerSecond()
                                 : ceilings_.Int8OpsPerSecond();
  }

  const Options& options_;
  double (*clock_)();
  Ceilings ceilings_;
  const int repetitions_;
};

}  // namespace conclave
