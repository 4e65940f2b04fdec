#include "client/status_command.h"

#include <grpcpp/client_context.h>

#include <algorithm>
#include <array>
#include <ostream>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "client/chat_result.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "proto/conclave/v1/inference.grpc.pb.h"
#include "rpc/channel.h"
#include "rpc/grpc_status.h"

namespace conclave {
namespace {

using nlohmann::ordered_json;

constexpr absl::Duration kPollInterval = absl::Milliseconds(200);

using Row = std::array<std::string, 4>;  // process, target, state, load

std::string FormatTable(const std::vector<Row>& rows) {
  std::array<size_t, 4> widths = {};
  for (const Row& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const Row& row : rows) {
    for (size_t i = 0; i + 1 < row.size(); ++i) {
      absl::StrAppendFormat(&text, "%-*s  ", static_cast<int>(widths[i]), row[i]);
    }
    absl::StrAppend(&text, row.back(), "\n");
  }
  return text;
}

Row WorkerRow(const v1::ClusterStatus::WorkerStatus& worker) {
  const v1::WorkerDescription& description = worker.description();
  // A router uses none that is not ready, or that loaded another model; those two do answer.
  const bool answers = description.ready() || !description.reason().empty();
  if (!worker.up()) {
    return {"worker", worker.target(), answers ? "not ready" : "down", worker.error()};
  }
  return {
      "worker", worker.target(), "ready",
      absl::StrFormat("%d running, %d waiting, %d of %d KV blocks, %.1f tokens/s%s",
                      description.running(), description.waiting(), description.kv_blocks_used(),
                      description.kv_blocks_total(), description.tokens_per_second(),
                      description.local_experts() ? ", experts inside" : "")};
}

ordered_json ShardJson(const v1::ShardState& shard) {
  return {
      {"target", shard.target()},
      {"up", shard.up()},
      {"expert_ids", std::vector<uint32_t>(shard.expert_ids().begin(), shard.expert_ids().end())},
      {"rows_sent", shard.rows_sent()},
      {"retries", shard.retries()},
      {"transport", shard.transport()}};
}

ordered_json WorkerJson(const v1::ClusterStatus::WorkerStatus& worker) {
  const v1::WorkerDescription& description = worker.description();
  ordered_json shards = ordered_json::array();
  for (const v1::ShardState& shard : description.shards()) shards.push_back(ShardJson(shard));
  return {{"target", worker.target()},
          {"up", worker.up()},
          {"error", worker.error()},
          {"ready", description.ready()},
          {"reason", description.reason()},
          {"fingerprint", description.model().fingerprint()},
          {"inflight", worker.inflight()},
          {"running", description.running()},
          {"waiting", description.waiting()},
          {"kv_blocks_total", description.kv_blocks_total()},
          {"kv_blocks_used", description.kv_blocks_used()},
          {"max_context", description.max_context()},
          {"local_experts", description.local_experts()},
          {"tokens_per_second", description.tokens_per_second()},
          {"shards", std::move(shards)}};
}

ordered_json ClusterJson(const v1::ClusterStatus& cluster) {
  const v1::ModelInfo& model = cluster.model();
  ordered_json workers = ordered_json::array();
  for (const auto& worker : cluster.workers()) workers.push_back(WorkerJson(worker));
  return {{"serving", cluster.serving()},
          {"model",
           {{"name", model.name()},
            {"architecture", model.architecture()},
            {"fingerprint", model.fingerprint()},
            {"num_hidden_layers", model.num_hidden_layers()},
            {"hidden_size", model.hidden_size()},
            {"num_experts", model.num_experts()},
            {"num_experts_per_tok", model.num_experts_per_tok()},
            {"max_context", model.max_context()}}},
          {"router",
           {{"inflight", cluster.router().inflight()},
            {"waiting", cluster.router().waiting()},
            {"draining", cluster.router().draining()},
            {"uptime_seconds", cluster.router().uptime_seconds()},
            {"thinking_tokens", cluster.router().thinking_tokens()},
            {"answer_tokens", cluster.router().answer_tokens()}}},
          {"workers", std::move(workers)}};
}

}  // namespace

absl::StatusOr<v1::ClusterStatus> GetCluster(v1::Inference::Stub& stub, absl::Time deadline) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(deadline));
  v1::ClusterStatus cluster;
  RETURN_IF_ERROR(FromGrpcStatus(stub.GetCluster(&context, v1::GetClusterRequest(), &cluster)));
  return cluster;
}

std::string FormatExpertIds(const google::protobuf::RepeatedField<uint32_t>& expert_ids) {
  std::vector<std::string> ranges;
  for (int first = 0, next; first < expert_ids.size(); first = next) {
    next = first + 1;
    while (next < expert_ids.size() && expert_ids[next] == expert_ids[next - 1] + 1) ++next;
    ranges.push_back(next == first + 1
                         ? absl::StrCat(expert_ids[first])
                         : absl::StrCat(expert_ids[first], "-", expert_ids[next - 1]));
  }
  return ranges.empty() ? "-" : absl::StrJoin(ranges, ",");
}

std::string FormatCluster(const std::string& endpoint, const v1::ClusterStatus& cluster) {
  std::vector<Row> rows = {{"PROCESS", "TARGET", "STATE", "LOAD"}};
  const v1::ClusterStatus::Router& router = cluster.router();
  rows.push_back({"router", endpoint,
                  router.draining()   ? "draining"
                  : cluster.serving() ? "serving"
                                      : "not serving",
                  absl::StrFormat("%d in flight, %d waiting, up %.0f s", router.inflight(),
                                  router.waiting(), router.uptime_seconds())});
  for (const v1::ClusterStatus::WorkerStatus& worker : cluster.workers()) {
    rows.push_back(WorkerRow(worker));
    for (const v1::ShardState& shard : worker.description().shards()) {
      rows.push_back({"  shard", shard.target(), shard.up() ? "up" : "down",
                      absl::StrCat("experts ", FormatExpertIds(shard.expert_ids()), ", ",
                                   shard.rows_sent(), " rows sent, ", shard.retries(), " retries",
                                   shard.transport().empty() ? "" : ", by ", shard.transport())});
    }
  }
  const v1::ModelInfo& model = cluster.model();
  std::string text = absl::StrCat("model ", model.name(), ": ", model.architecture(), ", ",
                                  model.num_hidden_layers(), " layers");
  if (model.num_experts() > 0) {
    absl::StrAppend(&text, ", ", model.num_experts(), " experts (", model.num_experts_per_tok(),
                    " per token)");
  }
  return absl::StrCat(text, ", context ", model.max_context(), " tokens\n", FormatTable(rows));
}

absl::Status RunStatus(const StatusCommandOptions& options, std::ostream& out) {
  const auto stub = v1::Inference::NewStub(MakeChannel(options.router.endpoint));
  const absl::Time give_up = absl::Now() + absl::Seconds(options.wait_seconds);
  while (true) {
    const absl::Time now = absl::Now();
    const absl::StatusOr<v1::ClusterStatus> cluster =
        GetCluster(*stub, now + limits::kDescribeDeadline);
    const bool serves = cluster.ok() && cluster->serving();
    if (!serves && absl::Now() < give_up) {
      absl::SleepFor(std::min(kPollInterval, give_up - absl::Now()));
      continue;
    }
    RETURN_IF_ERROR(cluster.status());
    out << (options.json ? ToLine(ClusterJson(*cluster)) + "\n"
                         : FormatCluster(options.router.endpoint, *cluster))
        << std::flush;
    if (serves) return absl::OkStatus();
    return absl::UnavailableError("the cluster does not serve: no worker is ready");
  }
}

}  // namespace conclave
