// The two forms of a DeploymentPlan: JSON and text.

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/plan_command.h"
#include "model/expert_placement.h"

namespace conclave {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kBatches[] = {1, 8, 32, 64, 128, 256};
constexpr char kNoCuda[] = "Not yet run on a GPU: the programs take these flags, no card has yet.";

double GiB(int64_t bytes) { return std::ldexp(static_cast<double>(bytes), -30); }

Roofline MakeRoofline(const PlanQuestion& question, const DeploymentPlan& plan) {
  return {question.config, plan.weights,         question.dtype,
          question.device, question.num_devices, question.hop_us * 1e-6};
}

std::string Roles(const PlanQuestion& question) {
  if (question.config.num_experts == 0) return "worker";
  return question.num_devices > 1 ? "worker, shard" : "worker with all experts";
}

// Batches of the table, the one asked for among them.
std::set<int64_t> Batches(const PlanQuestion& question) {
  std::set<int64_t> batches(std::begin(kBatches), std::end(kBatches));
  batches.insert(question.batch);
  return batches;
}

// Infinite where nothing limits it: the arithmetic of a CPU is not known unless given.
ordered_json Finite(double value) {
  return std::isfinite(value) ? ordered_json(value) : ordered_json(nullptr);
}

// What the loss of one device does, as the services behave.
std::string LossText(const PlanQuestion& question, const DeploymentPlan& plan) {
  const DevicePlan& lost = plan.devices.back();
  const std::string device = question.device.is_cpu ? "host" : "card";
  if (question.num_devices == 1) {
    return absl::StrCat("it is the only ", device, ": nothing is served until it is back");
  }
  std::string text =
      absl::StrCat("its requests go on at the other workers, which compute their KV anew (up to ",
                   lost.kv_tokens, " tokens)");
  if (question.config.num_experts == 0) {
    return absl::StrCat(text, "; ", plan.survivors_kv_tokens, " KV tokens are left");
  }
  absl::StrAppendFormat(
      &text,
      ". Its experts %s of every layer (%.1f GiB) are nowhere else: every request waits, KV kept, "
      "until the shard is back or --shard_wait_seconds of the workers (60) are over. ",
      FormatExpertList(lost.experts), GiB(lost.expert_weights));
  if (plan.survivors_fit) {
    absl::StrAppend(&text, "Started anew on the ", question.num_devices - 1,
                    " left, the model fits with ", plan.survivors_kv_tokens, " KV tokens");
  } else {
    absl::StrAppend(&text, "The ", question.num_devices - 1,
                    " left cannot hold the model: a spare is needed");
  }
  return text;
}

ordered_json DeviceJson(const PlanQuestion& question, const DevicePlan& device, int index) {
  return {{"index", index},
          {"roles", question.num_devices > 1 && question.config.num_experts > 0
                        ? ordered_json::array({"worker", "shard"})
                        : ordered_json::array({"worker"})},
          {"experts", FormatExpertList(device.experts)},
          {"num_experts", device.experts.size()},
          {"attention_bytes", device.attention},
          {"expert_bytes", device.expert_weights},
          {"other_weight_bytes", device.other_weights},
          {"workspace_bytes", device.workspace},
          {"kv_bytes", device.kv},
          {"usable_bytes", device.usable},
          {"weights_gib", GiB(device.Weights())},
          {"kv_tokens", device.kv_tokens}};
}

ordered_json FloorsJson(const PlanQuestion& question, const Roofline& roofline) {
  ordered_json floors = ordered_json::array();
  for (const int64_t batch : Batches(question)) {
    const double seconds = roofline.DecodeSeconds(batch, question.context);
    floors.push_back(
        {{"batch", batch},
         {"floor_ms", seconds * 1e3},
         {"layout_floor_ms", roofline.DecodeSecondsAsLaidOut(batch, question.context) * 1e3},
         {"tokens_per_second", static_cast<double>(batch) / seconds}});
  }
  return floors;
}

ordered_json CommandsJson(const PlanQuestion& question, const DeploymentPlan& plan) {
  ordered_json processes = ordered_json::array();
  for (const PlannedProcess& process : PlannedProcesses(question, plan)) {
    processes.push_back({{"name", process.name}, {"argv", process.argv}});
  }
  return {{"up", PlannedUpCommand(question, plan)},
          {"processes", std::move(processes)},
          {"note", question.device.is_cpu ? "" : kNoCuda}};
}

std::string DeviceTable(const PlanQuestion& question, const DeploymentPlan& plan) {
  std::string text =
      absl::StrFormat("%-5s %-24s %-10s %10s %8s %6s %10s %7s %8s %10s\n",
                      question.device.is_cpu ? "host" : "card", "roles", "experts", "attention",
                      "experts", "other", "workspace", "KV", "of GiB", "KV tokens");
  for (size_t i = 0; i < plan.devices.size(); ++i) {
    const DevicePlan& device = plan.devices[i];
    absl::StrAppendFormat(
        &text, "%-5d %-24s %-10s %10.1f %8.1f %6.1f %10.1f %7.1f %8.1f %10d\n", i, Roles(question),
        device.experts.empty() ? "-" : FormatExpertList(device.experts), GiB(device.attention),
        GiB(device.expert_weights), GiB(device.other_weights), GiB(device.workspace),
        GiB(device.kv), GiB(device.usable), device.kv_tokens);
  }
  return text;
}

std::string FloorTable(const PlanQuestion& question, const DeploymentPlan& plan) {
  const Roofline roofline = MakeRoofline(question, plan);
  std::string text = absl::StrFormat(
      "floor of a decode step, %d tokens of context%s (no run is "
      "faster than this)\n%8s %12s %12s %26s\n",
      question.context,
      question.num_devices > 1 ? absl::StrFormat(", %g us a hop", question.hop_us) : "", "batch",
      "ms", "tokens/s", "as laid out, ms");
  for (const int64_t batch : Batches(question)) {
    const double seconds = roofline.DecodeSeconds(batch, question.context);
    absl::StrAppendFormat(&text, "%8d %12.2f %12.0f %26.2f\n", batch, seconds * 1e3,
                          static_cast<double>(batch) / seconds,
                          roofline.DecodeSecondsAsLaidOut(batch, question.context) * 1e3);
  }
  absl::StrAppendFormat(&text, "floor of prefill: a prompt of %d tokens %.1f ms", question.context,
                        roofline.PrefillSeconds(question.context) * 1e3);
  if (std::isfinite(roofline.PrefillTokensPerSecond())) {
    absl::StrAppendFormat(&text, "; at most %.0f tokens/s", roofline.PrefillTokensPerSecond());
  } else {
    absl::StrAppend(&text, " by memory alone (--host_tflops is not given)");
  }
  return text + "\n";
}

std::string CommandsText(const PlanQuestion& question, const DeploymentPlan& plan) {
  std::string text = "start it\n";
  if (!question.device.is_cpu) absl::StrAppend(&text, "  # ", kNoCuda, "\n");
  const std::vector<std::string> up = PlannedUpCommand(question, plan);
  if (!up.empty()) {
    absl::StrAppend(&text, "  ", absl::StrJoin(up, " "), "\n  # or each process by itself:\n");
  }
  for (const PlannedProcess& process : PlannedProcesses(question, plan)) {
    absl::StrAppend(&text, "  ", absl::StrJoin(process.argv, " "), "\n");
  }
  return text;
}

}  // namespace

ordered_json PlanJson(const PlanQuestion& question, const DeploymentPlan& plan) {
  const Roofline roofline = MakeRoofline(question, plan);
  int64_t on_devices = 0;
  ordered_json cards = ordered_json::array();
  for (size_t i = 0; i < plan.devices.size(); ++i) {
    on_devices += plan.devices[i].Weights();
    cards.push_back(DeviceJson(question, plan.devices[i], static_cast<int>(i)));
  }
  const bool fits = plan.fits.ok();
  return {{"fits", fits},
          {"reason", std::string(plan.fits.message())},
          {"least_cards", fits ? ordered_json(nullptr) : ordered_json(plan.least_devices)},
          {"config", question.model_name},
          {"dtype", std::string(WeightDtypeName(question.dtype))},
          {"device",
           {{"name", question.device.name},
            {"memory_gib", question.device.memory_gib},
            {"bandwidth_tbs", question.device.bandwidth_tbs},
            {"bf16_tflops", question.device.bf16_tflops},
            {"fp8_tflops", question.device.fp8_tflops},
            {"int8_tops", question.device.int8_tops}}},
          {"num_cards", question.num_devices},
          {"context", question.context},
          {"batch", question.batch},
          {"hop_us", question.hop_us},
          {"weights_gib", GiB(plan.weights.Total())},
          {"weights_on_cards_gib", GiB(on_devices)},
          {"kv_bytes_per_token", plan.kv_bytes_per_token},
          {"kv_tokens", plan.kv_tokens},
          {"decode_floor_ms", roofline.DecodeSeconds(question.batch, question.context) * 1e3},
          {"layout_decode_floor_ms",
           roofline.DecodeSecondsAsLaidOut(question.batch, question.context) * 1e3},
          {"decode_floors", FloorsJson(question, roofline)},
          {"prefill_floor_ms", roofline.PrefillSeconds(question.context) * 1e3},
          {"prefill_tokens_per_second", Finite(roofline.PrefillTokensPerSecond())},
          {"wire_bytes_per_step", plan.wire_bytes_per_step},
          {"cards", std::move(cards)},
          {"loss_of_a_card",
           {{"experts_without_owner",
             plan.devices.back().experts.size() * static_cast<size_t>(question.num_devices > 1)},
            {"survivors_fit", plan.survivors_fit},
            {"survivors_kv_tokens", plan.survivors_kv_tokens},
            {"text", LossText(question, plan)}}},
          {"commands", fits ? CommandsJson(question, plan) : ordered_json(nullptr)}};
}

std::string PlanText(const PlanQuestion& question, const DeploymentPlan& plan) {
  const bool fits = plan.fits.ok();
  const char* unit = question.device.is_cpu ? "host" : "card";
  std::string text = absl::StrFormat(
      "%s in %s on %d x %s: %s\n%.1f B parameters, %.1f B active a token, %.1f GiB of weights\n\n",
      question.model_name, WeightDtypeName(question.dtype), question.num_devices,
      question.device.name, fits ? "fits" : "does not fit",
      static_cast<double>(TotalParameters(question.config)) / 1e9,
      static_cast<double>(ActiveParameters(question.config)) / 1e9, GiB(plan.weights.Total()));
  absl::StrAppend(&text, DeviceTable(question, plan));
  if (!fits) {
    return absl::StrCat(text, "\n",
                        plan.least_devices > 0
                            ? absl::StrCat(plan.least_devices, " ", unit, "s would hold it\n")
                            : absl::StrCat("no number of such ", unit, "s holds it\n"));
  }
  absl::StrAppendFormat(
      &text, "\nKV: %d tokens in all (%d bytes each), %d sequences of %d tokens\n", plan.kv_tokens,
      plan.kv_bytes_per_token, plan.kv_tokens / question.context, question.context);
  absl::StrAppend(&text, "\n", FloorTable(question, plan));
  if (plan.wire_bytes_per_step > 0) {
    absl::StrAppendFormat(&text, "between %ss: %.3f MB a step at batch %d, both ways\n", unit,
                          plan.wire_bytes_per_step / 1e6, question.batch);
  }
  absl::StrAppend(&text, "\nif a ", unit, " is lost: ", LossText(question, plan), "\n\n",
                  CommandsText(question, plan));
  return text;
}

}  // namespace conclave
