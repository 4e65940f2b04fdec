#include "router/served_model.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace conclave {
namespace {

std::string DirectoryName(const std::string& model_dir) {
  std::error_code error;
  std::filesystem::path path = std::filesystem::weakly_canonical(model_dir, error);
  if (error) path = model_dir;
  if (!path.has_filename()) path = path.parent_path();  // "models/demo/"
  return path.filename().string();
}

absl::StatusOr<TemplateKind> ResolveTemplate(const ServedModelOptions& options) {
  if (options.chat_template == "auto") return DetectTemplate(options.model_dir);
  for (TemplateKind kind :
       {TemplateKind::kQwen3, TemplateKind::kInstruct2507, TemplateKind::kThinking2507}) {
    if (options.chat_template == ChatTemplateName(kind)) return kind;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("chat_template is \"", options.chat_template,
                   "\", want auto, qwen3, instruct-2507 or thinking-2507"));
}

// generation_config.json's, else config.json's, else the vocabulary's own.
absl::StatusOr<std::vector<uint32_t>> ResolveEndIds(const ServedModel& model) {
  const std::vector<int32_t>& configured = model.generation_config.eos_token_ids.empty()
                                               ? model.config.eos_token_ids
                                               : model.generation_config.eos_token_ids;
  std::vector<uint32_t> ids;
  for (int32_t id : configured) {
    if (id < 0 || static_cast<size_t>(id) >= model.vocabulary().size()) {
      return absl::FailedPreconditionError(
          absl::StrCat("eos_token_id is ", id, ", want 0..", model.vocabulary().size() - 1));
    }
    ids.push_back(static_cast<uint32_t>(id));
  }
  if (ids.empty()) {
    for (absl::string_view content : {"<|im_end|>", "<|endoftext|>"}) {
      if (auto id = model.vocabulary().IdOfAdded(content)) ids.push_back(*id);
    }
  }
  if (ids.empty()) {
    return absl::FailedPreconditionError(
        "eos_token_id is in no config and the vocabulary has no <|im_end|>: nothing would end");
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ServedModel>> LoadServedModel(const ServedModelOptions& options) {
  auto model = std::make_unique<ServedModel>();
  ASSIGN_OR_RETURN(model->config, LoadQwen3Config(options.model_dir));
  ASSIGN_OR_RETURN(model->generation_config, LoadGenerationConfig(options.model_dir));
  ASSIGN_OR_RETURN(model->template_kind, ResolveTemplate(options));
  ASSIGN_OR_RETURN(model->tokenizer, Tokenizer::Load(options.model_dir));
  const Vocabulary& vocabulary = model->vocabulary();
  if (vocabulary.size() > static_cast<size_t>(model->config.vocab_size)) {
    return absl::FailedPreconditionError(absl::StrCat("the tokenizer has ", vocabulary.size(),
                                                      " ids, want at most vocab_size ",
                                                      model->config.vocab_size, " of config.json"));
  }
  ASSIGN_OR_RETURN(model->end_ids, ResolveEndIds(*model));
  model->name = options.model_name.empty() ? DirectoryName(options.model_dir) : options.model_name;
  model->default_mode = options.default_mode;
  model->markup.think = vocabulary.IdOfAdded("<think>").value_or(0);
  model->markup.end_think = vocabulary.IdOfAdded("</think>").value_or(0);
  model->markup.tool_call = vocabulary.IdOfAdded("<tool_call>").value_or(0);
  model->markup.end_tool_call = vocabulary.IdOfAdded("</tool_call>").value_or(0);
  if (model->template_kind == TemplateKind::kThinking2507 && !model->markup.can_think()) {
    return absl::FailedPreconditionError(
        "chat_template is thinking-2507, but the vocabulary has no <think> and </think>");
  }
  return model;
}

v1::ModelInfo ServedModel::Info() const {
  v1::ModelInfo info;
  info.set_name(name);
  info.set_architecture(std::string(ArchitectureName(config.architecture)));
  info.set_num_hidden_layers(config.num_hidden_layers);
  info.set_hidden_size(config.hidden_size);
  info.set_num_experts(config.num_experts);
  info.set_num_experts_per_tok(config.num_experts_per_tok);
  info.set_vocab_size(config.vocab_size);
  info.set_max_context(config.MaxContext());
  return info;
}

absl::string_view ChatTemplateName(TemplateKind kind) {
  switch (kind) {
    case TemplateKind::kQwen3:
      return "qwen3";
    case TemplateKind::kInstruct2507:
      return "instruct-2507";
    case TemplateKind::kThinking2507:
      return "thinking-2507";
  }
  return "";
}

v1::ThinkingMode ToProto(ThinkingMode mode) {
  return mode == ThinkingMode::kThinking ? v1::THINKING_MODE_THINKING : v1::THINKING_MODE_OFF;
}

v1::ThinkingSource ToProto(ThinkingSource source) {
  switch (source) {
    case ThinkingSource::kRequest:
      return v1::THINKING_SOURCE_REQUEST;
    case ThinkingSource::kSoftSwitch:
      return v1::THINKING_SOURCE_SOFT_SWITCH;
    case ThinkingSource::kDefault:
      return v1::THINKING_SOURCE_DEFAULT;
    case ThinkingSource::kModel:
      return v1::THINKING_SOURCE_MODEL;
  }
  return v1::THINKING_SOURCE_UNSPECIFIED;
}

}  // namespace conclave
