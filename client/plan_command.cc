#include "client/plan_command.h"

#include <filesystem>
#include <ostream>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/chat_result.h"
#include "client/input_files.h"
#include "common/errors.h"
#include "common/status_macros.h"
#include "model/known_models.h"

namespace conclave {
namespace {

// Fills in the config, and where it was read from.
absl::Status ReadConfig(const std::string& given, PlanQuestion* question) {
  question->model_name = given;
  std::error_code ignored;
  const bool is_folder = std::filesystem::is_directory(given, ignored);
  if (!is_folder && !absl::EndsWith(given, ".json")) {
    ASSIGN_OR_RETURN(question->config, KnownModel(given));
    return absl::OkStatus();
  }
  if (is_folder) {
    question->model_dir = given;
    ASSIGN_OR_RETURN(question->config, LoadQwen3Config(given));
    return absl::OkStatus();
  }
  const std::string parent = std::filesystem::path(given).parent_path().string();
  question->model_dir = parent.empty() ? "." : parent;
  ASSIGN_OR_RETURN(const std::string json, ReadInput(given));
  const absl::StatusOr<Qwen3Config> config = ParseQwen3Config(json);
  if (!config.ok()) {
    return absl::Status(config.status().code(),
                        absl::StrCat(given, ": ", std::string(config.status().message())));
  }
  question->config = *config;
  return absl::OkStatus();
}

absl::Status ChooseDtype(const PlanOptions& options, Qwen3Config* config) {
  if (options.dtype == "bf16") {
    config->quantization = WeightQuantization::kNone;
  } else if (options.dtype == "fp8") {
    config->quantization = WeightQuantization::kFp8Block128;
  } else if (!options.dtype.empty()) {
    return errors::OutOfRange("--dtype", absl::StrCat("\"", options.dtype, "\""), "bf16 or fp8");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<PlanQuestion> MakePlanQuestion(const PlanOptions& options) {
  if (options.device.cpu && options.gpus) {
    return absl::InvalidArgumentError("--gpus does not go with --cpu, want --hosts");
  }
  if (!options.device.cpu && options.hosts) {
    return absl::InvalidArgumentError("--hosts is for --cpu, want --gpus");
  }
  PlanQuestion question;
  RETURN_IF_ERROR(ReadConfig(options.config, &question));
  RETURN_IF_ERROR(ChooseDtype(options, &question.config));
  const bool fp8 = question.config.quantization == WeightQuantization::kFp8Block128;
  ASSIGN_OR_RETURN(question.device, ChooseDevice(options.device, fp8));
  question.num_devices = (options.device.cpu ? options.hosts : options.gpus).value_or(1);
  question.context = options.context;
  question.batch = options.batch;
  question.memory_utilization = options.memory_utilization;
  question.hop_us = options.hop_us;
  return question;
}

absl::Status RunPlan(const PlanOptions& options, std::ostream& out) {
  ASSIGN_OR_RETURN(const PlanQuestion question, MakePlanQuestion(options));
  ASSIGN_OR_RETURN(const DeploymentPlan plan, PlanDeployment(question));
  out << (options.json ? ToLine(PlanJson(question, plan)) + "\n" : PlanText(question, plan))
      << std::flush;
  return plan.fits;
}

}  // namespace conclave
