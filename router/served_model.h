#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/generation_config.h"
#include "model/qwen3_config.h"
#include "proto/conclave/v1/inference.pb.h"
#include "proto/conclave/v1/model.pb.h"
#include "text/chat_template.h"
#include "text/thinking_mode.h"
#include "text/tokenizer.h"

namespace conclave {

struct ServedModelOptions {
  std::string model_dir;               // tokenizer, template and configs; no weights are read
  std::string model_name;              // empty: the directory's name
  std::string chat_template = "auto";  // or qwen3, instruct-2507, thinking-2507
  ThinkingMode default_mode = ThinkingMode::kThinking;
};

// Ids of the markup in generated text. 0 where the vocabulary has none (0 is never markup).
struct MarkupIds {
  uint32_t think = 0, end_think = 0;
  uint32_t tool_call = 0, end_tool_call = 0;
  bool can_think() const { return think != 0 && end_think != 0; }
};

// What the router knows of the model it serves. Immutable, so safe to share between threads.
struct ServedModel {
  std::string name;
  Qwen3Config config;
  GenerationConfig generation_config;
  std::unique_ptr<const Tokenizer> tokenizer;
  TemplateKind template_kind = TemplateKind::kQwen3;
  ThinkingMode default_mode = ThinkingMode::kThinking;
  std::vector<uint32_t> end_ids;  // ascending; generation ends at any of them
  MarkupIds markup;

  const Vocabulary& vocabulary() const { return tokenizer->vocabulary(); }
  // Without fingerprint: only who reads the weights knows it.
  v1::ModelInfo Info() const;
};

// Errors: those of the loaders (NotFound, DataLoss, ...); FailedPrecondition if the tokenizer and
// config.json do not fit together or the template is none of ours; InvalidArgument (chat_template).
absl::StatusOr<std::unique_ptr<ServedModel>> LoadServedModel(const ServedModelOptions& options);

// "qwen3", "instruct-2507", "thinking-2507".
absl::string_view ChatTemplateName(TemplateKind kind);

v1::ThinkingMode ToProto(ThinkingMode mode);
v1::ThinkingSource ToProto(ThinkingSource source);

}  // namespace conclave
