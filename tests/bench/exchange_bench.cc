// The round trip of one layer between a worker and its shards, by size and transport, beside the
// least that two processes of this host can do.

#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "common/check.h"
#include "model/fingerprint.h"
#include "model/synthetic.h"
#include "tests/bench/shard_child.h"
#include "worker/grpc_expert_exchange.h"
#include "worker/local_expert_exchange.h"

namespace conclave {
namespace {

struct BenchOptions {
  std::vector<int> rows = {1, 4, 16, 64, 256, 512};
  std::vector<int> shards = {1, 2};
  int hidden_size = 2048;
  int calls = 1000;
  int threads = 2;
};

// Experts so narrow that computing them takes a small part of the round trip.
Qwen3Config BenchConfig(int hidden_size) {
  Qwen3Config config = TinyMoeConfig();
  config.hidden_size = hidden_size;
  return config;
}

struct Percentiles {
  double p50_us = 0, p99_us = 0;
};

Percentiles Time(int calls, const std::function<void()>& call) {
  for (int i = 0; i < calls / 10 + 1; ++i) call();
  std::vector<double> times;
  for (int i = 0; i < calls; ++i) {
    const absl::Time start = absl::Now();
    call();
    times.push_back(absl::ToDoubleMicroseconds(absl::Now() - start));
  }
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times[times.size() * 99 / 100]};
}

// `there` bytes to another process over a Unix socket, and `back` bytes back.
Percentiles SocketPingPong(int calls, size_t there, size_t back) {
  Child child([&](int fd) {
    std::vector<char> in(there), out(back);
    for (;;) {
      ReadAll(fd, in.data(), in.size());
      WriteAll(fd, out.data(), out.size());
    }
  });
  std::vector<char> out(there), in(back);
  return Time(calls, [&] {
    WriteAll(child.fd(), out.data(), out.size());
    ReadAll(child.fd(), in.data(), in.size());
  });
}

void FutexWaitWhile(std::atomic<uint32_t>* word, uint32_t value) {
  while (word->load() == value) {
    syscall(SYS_futex, word, FUTEX_WAIT, value, nullptr, nullptr, 0);
  }
}

void FutexSet(std::atomic<uint32_t>* word, uint32_t value) {
  word->store(value);
  syscall(SYS_futex, word, FUTEX_WAKE, 1, nullptr, nullptr, 0);
}

// Two processes that wake each other with a word in shared memory.
Percentiles FutexPingPong(int calls) {
  void* page = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(page != MAP_FAILED);
  auto* words = static_cast<std::atomic<uint32_t>*>(page);
  Child child([words](int) {
    for (uint32_t turn = 0;; ++turn) {
      FutexWaitWhile(&words[0], turn);
      FutexSet(&words[16], turn + 1);
    }
  });
  uint32_t turn = 0;
  return Time(calls, [&] {
    FutexSet(&words[0], turn + 1);
    FutexWaitWhile(&words[16], turn);
    ++turn;
  });
}

struct Batch {
  Batch(const Qwen3Config& config, int num_rows)
      : rows(static_cast<size_t>(num_rows) * config.hidden_size, ToBFloat16(0.5f)) {
    for (int row = 0; row < num_rows; ++row) {
      for (int k = 0; k < config.num_experts_per_tok; ++k) {
        topk_ids.push_back((row + k * config.num_experts / config.num_experts_per_tok) %
                           config.num_experts);
      }
    }
    batch.hidden_states = rows.data();
    batch.topk_ids = topk_ids.data();
    batch.num_rows = num_rows;
  }

  std::vector<BFloat16> rows;
  std::vector<int32_t> topk_ids;
  ExpertBatch batch;
};

Percentiles TimeExchange(int calls, ExpertExchange& exchange, const ExpertBatch& batch) {
  std::vector<const BFloat16*> expert_rows;
  return Time(calls, [&] {
    const absl::Status status = exchange.Run(batch, expert_rows);
    CHECK(status.ok()) << status;
  });
}

std::unique_ptr<GrpcExpertExchange> Connect(const GrpcExpertExchangeOptions& options,
                                            const std::string& transport, Metrics* metrics) {
  auto exchange = std::make_unique<GrpcExpertExchange>(options, nullptr, metrics);
  const absl::Status ready = exchange->AwaitReady(absl::Now() + absl::Seconds(30));
  CHECK(ready.ok()) << ready;
  for (int tries = 0;; ++tries) {
    bool all = true;
    for (const v1::ShardState& shard : exchange->Shards()) {
      all = all && shard.transport() == transport;
    }
    if (all) return exchange;
    CHECK_LT(tries, 5000) << "a shard is not reached by " << transport;
    absl::SleepFor(absl::Milliseconds(1));
  }
}

// Forks no more: gRPC's threads run.
void BenchExchanges(const std::string& model, const Qwen3Config& config,
                    const BenchOptions& options, int num_shards,
                    const std::vector<std::string>& targets,
                    const std::vector<Percentiles>& sockets) {
  const auto checkpoint = ValueOrDie(Checkpoint::Open(model));
  ThreadPool pool(options.threads);
  std::vector<int> all(config.num_experts);
  for (int expert = 0; expert < config.num_experts; ++expert) all[expert] = expert;
  LocalExpertExchange local(
      config, ValueOrDie(ExpertRunner::Load(*checkpoint, config, all, WeightDtype::kBf16,
                                            {DetectCpuIsa(), &pool})));
  Metrics metrics;
  GrpcExpertExchangeOptions exchange_options;
  exchange_options.shards = targets;
  exchange_options.fingerprint = ValueOrDie(Fingerprint(*checkpoint, config));
  exchange_options.config = config;
  exchange_options.shared_memory = false;
  const auto grpc = Connect(exchange_options, "grpc", &metrics);
  exchange_options.shared_memory = true;
  const auto shared = Connect(exchange_options, "shared_memory", &metrics);
  for (size_t i = 0; i < options.rows.size(); ++i) {
    const Batch batch(config, options.rows[i]);
    const Percentiles base = TimeExchange(options.calls, local, batch.batch);
    const Percentiles by_grpc = TimeExchange(options.calls, *grpc, batch.batch);
    const Percentiles by_memory = TimeExchange(options.calls, *shared, batch.batch);
    const double socket = sockets[i].p50_us;
    std::printf(
        "%6d %5d %8.1f | %8.1f %8.1f | %8.1f %8.1f | %8.1f %8.1f | %8.1f %8.1f | %6.2f %6.2f\n",
        num_shards, options.rows[i], static_cast<double>(batch.rows.size()) * 2 / 1024, base.p50_us,
        base.p99_us, socket, sockets[i].p99_us, by_grpc.p50_us, by_grpc.p99_us, by_memory.p50_us,
        by_memory.p99_us, (by_grpc.p50_us - base.p50_us) / socket,
        (by_memory.p50_us - base.p50_us) / socket);
    std::fflush(stdout);
  }
}

void RunBench(const BenchOptions& options) {
  const Qwen3Config config = BenchConfig(options.hidden_size);
  std::string dir = (std::filesystem::temp_directory_path() / "exchange_bench.XXXXXX").string();
  CHECK(mkdtemp(dir.data()) != nullptr);
  const std::string model = dir + "/model";
  const absl::Status written = WriteSyntheticCheckpoint(config, model);
  CHECK(written.ok()) << written;
  const Percentiles futex = FutexPingPong(options.calls);
  std::printf("two processes waking each other by futex: p50 %.1f us, p99 %.1f us\n", futex.p50_us,
              futex.p99_us);
  std::vector<Percentiles> sockets;
  for (const int rows : options.rows) {
    const size_t bytes = static_cast<size_t>(rows) * options.hidden_size * 2;
    sockets.push_back(SocketPingPong(options.calls, bytes, bytes * config.num_experts_per_tok));
  }
  std::printf(
      "round trip of a layer, us; the last two: what the way adds to in process, over the\n"
      "round trip of the same bytes through a Unix socket\n");
  std::printf("%6s %5s %8s | %8s %8s | %8s %8s | %8s %8s | %8s %8s | %6s %6s\n", "shards", "rows",
              "KiB out", "in proc", "p99", "socket", "p99", "gRPC", "p99", "memory", "p99", "gRPC",
              "memory");
  for (const int num_shards : options.shards) {
    // In a process of its own, for the next number of shards must be forked before gRPC starts.
    std::vector<std::unique_ptr<Child>> shards;
    std::vector<std::string> targets;
    for (int shard = 0; shard < num_shards; ++shard) {
      shards.push_back(std::make_unique<Child>(
          [&](int fd) { RunShard(model, config, options.threads, num_shards, shard, fd); }));
      targets.push_back(ReadAddress(shards.back()->fd()));
    }
    const pid_t worker = fork();
    CHECK_GE(worker, 0);
    if (worker == 0) {
      BenchExchanges(model, config, options, num_shards, targets, sockets);
      fflush(stdout);
      _exit(0);
    }
    waitpid(worker, nullptr, 0);
  }
  std::filesystem::remove_all(dir);
}

}  // namespace
}  // namespace conclave

int main(int argc, char** argv) {
  conclave::BenchOptions options;
  CLI::App app("The round trip of one layer between a worker and its shards on one host.");
  app.add_option("--rows", options.rows, "Rows of the batch")->capture_default_str();
  app.add_option("--shards", options.shards, "Numbers of shards")->capture_default_str();
  app.add_option("--hidden_size", options.hidden_size)->capture_default_str();
  app.add_option("--calls", options.calls, "Of each row of the table")->capture_default_str();
  app.add_option("--threads", options.threads, "Of each process")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  conclave::RunBench(options);
  return 0;
}
