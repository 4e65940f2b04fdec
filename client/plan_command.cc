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

// FP8, and on GPUs BF16, are what a checkpoint is stored in. A CPU's processes can widen FP8 and
// quantize either while they load.
absl::Status ChooseDtype(const PlanOptions& options, PlanQuestion* question) {
  question->dtype = CheckpointDtype(question->config);
  if (options.dtype.empty()) return absl::OkStatus();
  const bool cpu = options.device.cpu;
  const absl::StatusOr<WeightDtype> dtype = ParseWeightDtype(options.dtype);
  const bool quantizes =
      dtype.ok() && (*dtype == WeightDtype::kInt8 || *dtype == WeightDtype::kInt4);
  if (!dtype.ok() || (quantizes && !cpu)) {
    return errors::OutOfRange(
        "--dtype", absl::StrCat("\"", options.dtype, "\""),
        cpu ? "bf16, fp8, int8 or int4" : "bf16 or fp8 (int8 and int4 with --cpu)");
  }
  question->dtype = *dtype;
  if (*dtype == WeightDtype::kFp8) {
    question->config.quantization = WeightQuantization::kFp8Block128;
  } else if (!cpu) {
    question->config.quantization = WeightQuantization::kNone;
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
  RETURN_IF_ERROR(ChooseDtype(options, &question));
  ASSIGN_OR_RETURN(question.device,
                   ChooseDevice(options.device, question.dtype == WeightDtype::kFp8));
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
