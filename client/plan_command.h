#pragma once

#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "client/deployment_plan.h"
#include "client/plan_device.h"
#include "nlohmann/json.hpp"

namespace conclave {

struct PlanOptions {
  std::string config;  // a known model's name, a config.json, or a folder with one
  std::string dtype;   // bf16, fp8, int8 or int4; empty: as the checkpoint is stored
  DeviceFlags device;
  std::optional<int> gpus, hosts;  // 1 unless given
  int64_t context = 1024;
  int64_t batch = 1;
  double memory_utilization = 0.92;
  double hop_us = 10;
  bool json = false;
};

// InvalidArgument for flags that are wrong or do not go together; NotFound: no such model, GPU or
// file; otherwise the errors of reading a config.json.
absl::StatusOr<PlanQuestion> MakePlanQuestion(const PlanOptions& options);

nlohmann::ordered_json PlanJson(const PlanQuestion& question, const DeploymentPlan& plan);
std::string PlanText(const PlanQuestion& question, const DeploymentPlan& plan);

// `conclave plan`: what a model takes on given hardware and how fast it could at most be, computed,
// not measured; nothing is loaded. Prints to `out`. ResourceExhausted, after printing, if it does
// not fit; otherwise the errors of MakePlanQuestion and PlanDeployment.
absl::Status RunPlan(const PlanOptions& options, std::ostream& out);

}  // namespace conclave
