// Which template a checkpoint brings: RecognizeTemplate and DetectTemplate of chat_template.h.
#include <cstdint>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"
#include "text/chat_template.h"
#include "text/file.h"

namespace conclave {
namespace {

// FNV-1a 64 of the template without whitespace, which copies change (line ends, indentation).
constexpr uint64_t kQwen3Hashes[] = {
    0x4629B26C31E7ABF0u,  // the release of April 2025
    0x4A236B0D763275BFu,  // its revision, which takes content that is no string for ""
};

uint64_t HashWithoutSpace(absl::string_view text) {
  uint64_t hash = 0xCBF29CE484222325u;
  for (const char c : text) {
    if (absl::ascii_isspace(static_cast<unsigned char>(c))) continue;
    hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001B3u;
  }
  return hash;
}

// What a template of the family may write or compare with.
bool IsKnownLiteral(const std::string& literal) {
  static const auto* const known = new absl::flat_hash_set<std::string>{
      "",
      "\n",
      "\n\n",
      "system",
      "user",
      "assistant",
      "tool",
      "<|im_start|>",
      "<|im_end|>",
      "<|im_end|>\n",
      "<|im_start|>system\n",
      "<|im_start|>user",
      "<|im_start|>user\n",
      "<|im_start|>assistant\n",
      "<|im_start|>assistant\n<think>\n",
      "<think>",
      "</think>",
      "<think>\n",
      "\n<think>\n",
      "\n</think>\n\n",
      "<tool_response>",
      "</tool_response>",
      "<tool_response>\n",
      "\n<tool_response>\n",
      "\n</tool_response>",
      "<tool_call>\n{\"name\": \"",
      "\", \"arguments\": ",
      "}\n</tool_call>",
      "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are "
      "provided with function signatures within <tools></tools> XML tags:\n<tools>",
      "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
      "within <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, "
      "\"arguments\": <args-json-object>}\n</tool_call><|im_end|>\n",
  };
  return known->contains(literal);
}

// The quoted string at the start of `*code`, which is taken off.
std::string TakeLiteral(absl::string_view* code) {
  const char quote = (*code)[0];
  std::string literal;
  size_t i = 1;
  for (; i < code->size() && (*code)[i] != quote; ++i) {
    if ((*code)[i] != '\\' || i + 1 == code->size()) {
      literal.push_back((*code)[i]);
      continue;
    }
    ++i;
    literal.push_back((*code)[i] == 'n' ? '\n' : (*code)[i]);
  }
  code->remove_prefix(std::min(i + 1, code->size()));
  return literal;
}

// Whether all that the template can print besides the messages is known: nothing outside its tags,
// and only known strings inside them. Collects those.
bool HasOnlyKnownText(absl::string_view jinja, absl::flat_hash_set<std::string>* literals) {
  bool in_tag = false;
  while (!jinja.empty()) {
    if (!in_tag && (absl::StartsWith(jinja, "{{") || absl::StartsWith(jinja, "{%"))) {
      in_tag = true;
      jinja.remove_prefix(2);
    } else if (in_tag && (absl::StartsWith(jinja, "}}") || absl::StartsWith(jinja, "%}"))) {
      in_tag = false;
      jinja.remove_prefix(2);
    } else if (in_tag && (jinja[0] == '\'' || jinja[0] == '"')) {
      const std::string literal = TakeLiteral(&jinja);
      if (!IsKnownLiteral(literal)) return false;
      literals->insert(literal);
    } else {
      if (!in_tag && !absl::ascii_isspace(static_cast<unsigned char>(jinja[0]))) return false;
      jinja.remove_prefix(1);
    }
  }
  return true;
}

// The template in tokenizer_config.json: one string, or a list of named ones.
absl::StatusOr<std::string> TemplateOfConfig(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadCheckpointText(path));
  try {
    const nlohmann::json config = nlohmann::json::parse(text);
    if (!config.is_object()) {
      return errors::BadCheckpoint(path, "", config.type_name(), "an object");
    }
    const auto it = config.find("chat_template");
    if (it == config.end() || it->is_null()) {
      return absl::NotFoundError(absl::StrCat(
          path, ": has no chat_template, want one; --chat_template=qwen3 renders without"));
    }
    if (it->is_string()) return it->get<std::string>();
    for (const nlohmann::json& named : *it) {
      if (named.at("name") == "default") return named.at("template").get<std::string>();
    }
    return errors::BadCheckpoint(path, "", "no chat_template named \"default\"", "one");
  } catch (const nlohmann::json::exception& error) {
    return errors::BadCheckpoint(path, "", error.what(), "JSON with a chat_template");
  }
}

}  // namespace

absl::StatusOr<TemplateKind> RecognizeTemplate(absl::string_view jinja) {
  const uint64_t hash = HashWithoutSpace(jinja);
  for (const uint64_t known : kQwen3Hashes) {
    if (hash == known) return TemplateKind::kQwen3;
  }
  absl::flat_hash_set<std::string> literals;
  const bool is_family = HasOnlyKnownText(jinja, &literals) &&
                         literals.contains("\n<tool_response>\n") &&
                         literals.contains("<tool_call>\n{\"name\": \"") &&
                         !absl::StrContains(jinja, "enable_thinking");
  if (is_family && literals.contains("<|im_start|>assistant\n<think>\n")) {
    return TemplateKind::kThinking2507;
  }
  if (is_family && literals.contains("<|im_start|>assistant\n") &&
      !absl::StrContains(jinja, "think")) {
    return TemplateKind::kInstruct2507;
  }
  return absl::FailedPreconditionError(absl::StrCat(
      "the chat template (hash ", absl::Hex(hash, absl::kZeroPad16),
      ") is none of Qwen3's, want one of them; --chat_template=qwen3 (or qwen3-instruct-2507, "
      "qwen3-thinking-2507) renders with that one instead"));
}

absl::StatusOr<TemplateKind> DetectTemplate(const std::string& model_dir) {
  std::string path = absl::StrCat(model_dir, "/chat_template.jinja");
  absl::StatusOr<std::string> jinja = ReadCheckpointText(path);
  if (absl::IsNotFound(jinja.status())) {
    path = absl::StrCat(model_dir, "/tokenizer_config.json");
    jinja = TemplateOfConfig(path);
  }
  if (!jinja.ok()) return jinja.status();
  absl::StatusOr<TemplateKind> kind = RecognizeTemplate(*jinja);
  if (!kind.ok()) {
    return absl::Status(kind.status().code(), absl::StrCat(path, ": ", kind.status().message()));
  }
  return kind;
}

}  // namespace conclave
