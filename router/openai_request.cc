#include "router/openai_request.h"

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave {
namespace {

constexpr int64_t kMaxUint32 = std::numeric_limits<uint32_t>::max();

absl::Status ReadFloats(const OpenAiFields& body, v1::SamplingOptions* sampling) {
  constexpr struct {
    absl::string_view key;
    void (v1::SamplingOptions::*set)(float);
  } kFloats[] = {
      {"temperature", &v1::SamplingOptions::set_temperature},
      {"top_p", &v1::SamplingOptions::set_top_p},
      {"min_p", &v1::SamplingOptions::set_min_p},
      {"presence_penalty", &v1::SamplingOptions::set_presence_penalty},
      {"frequency_penalty", &v1::SamplingOptions::set_frequency_penalty},
      {"repetition_penalty", &v1::SamplingOptions::set_repetition_penalty},
  };
  for (const auto& field : kFloats) {
    ASSIGN_OR_RETURN(const std::optional<double> number, body.Number(field.key));
    if (number.has_value()) (sampling->*field.set)(static_cast<float>(*number));
  }
  return absl::OkStatus();
}

absl::Status ReadLogitBias(const OpenAiFields& body, v1::SamplingOptions* sampling) {
  ASSIGN_OR_RETURN(const std::optional<OpenAiFields> biases, body.Object("logit_bias"));
  if (!biases.has_value()) return absl::OkStatus();
  for (const auto& [key, value] : biases->object().members()) {
    uint32_t id = 0;
    if (!absl::SimpleAtoi(key, &id)) {
      return absl::InvalidArgumentError(
          absl::StrCat(body.Path("logit_bias"), " is an object with the key ",
                       DescribeJson(JsonValue::String(key)), ", want token ids as keys"));
    }
    if (value.is_null()) continue;
    ASSIGN_OR_RETURN(const double bias, ReadNumber(biases->Path(key), value));
    (*sampling->mutable_logit_bias())[id] = static_cast<float>(bias);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> ReadStop(const OpenAiFields& body) {
  const JsonValue* stop = body.Given("stop");
  if (stop == nullptr) return std::vector<std::string>();
  if (stop->is_string()) return std::vector<std::string>{stop->string_value()};
  if (!stop->is_array()) {
    return WrongField(body.Path("stop"), *stop, "a string or a list of strings");
  }
  std::vector<std::string> strings;
  for (const JsonValue& item : stop->items()) {
    if (!item.is_string()) {
      return WrongField(absl::StrCat(body.Path("stop"), "[", strings.size(), "]"), item,
                        "a string");
    }
    strings.push_back(item.string_value());
  }
  return strings;
}

template <typename Request>
absl::Status ReadCommonOf(const OpenAiFields& body, Request* request) {
  ASSIGN_OR_RETURN(std::optional<std::string> model, body.String("model"));
  if (model.has_value()) request->set_model(*std::move(model));
  ASSIGN_OR_RETURN(const std::vector<std::string> stop, ReadStop(body));
  request->mutable_stop()->Add(stop.begin(), stop.end());
  ASSIGN_OR_RETURN(const JsonValue* stop_ids, body.Array("stop_token_ids"));
  if (stop_ids != nullptr) {
    ASSIGN_OR_RETURN(const std::vector<uint32_t> ids,
                     ReadIds(body.Path("stop_token_ids"), *stop_ids));
    request->mutable_stop_ids()->Add(ids.begin(), ids.end());
  }
  ASSIGN_OR_RETURN(const std::optional<bool> ignore_eos, body.Bool("ignore_eos"));
  request->set_ignore_eos(ignore_eos.value_or(false));
  return absl::OkStatus();
}

absl::Status RefuseResponseFormat(const OpenAiFields& body) {
  ASSIGN_OR_RETURN(const std::optional<OpenAiFields> format, body.Object("response_format"));
  if (!format.has_value()) return absl::OkStatus();
  const JsonValue* type = format->object().Find("type");
  if (type != nullptr && type->string_value() == "text") return absl::OkStatus();
  return WrongField(format->Path("type"), type == nullptr ? JsonValue() : *type,
                    "\"text\": decoding cannot be constrained to a format here");
}

}  // namespace

absl::StatusOr<OpenAiAnswerOptions> ReadAnswerOptions(const OpenAiFields& body) {
  OpenAiAnswerOptions options;
  ASSIGN_OR_RETURN(const std::optional<int64_t> n, body.Integer("n", 1, limits::kMaxHttpChoices));
  options.n = static_cast<int>(n.value_or(1));
  ASSIGN_OR_RETURN(const std::optional<bool> stream, body.Bool("stream"));
  options.stream = stream.value_or(false);
  ASSIGN_OR_RETURN(const std::optional<OpenAiFields> stream_options, body.Object("stream_options"));
  if (stream_options.has_value()) {
    ASSIGN_OR_RETURN(const std::optional<bool> usage, stream_options->Bool("include_usage"));
    options.include_usage = usage.value_or(false);
  }
  ASSIGN_OR_RETURN(const std::optional<bool> report, body.Bool("thinking_report"));
  options.thinking_report = report.value_or(false);
  ASSIGN_OR_RETURN(const std::optional<bool> reasoning, body.Bool("include_reasoning"));
  options.include_reasoning = reasoning.value_or(true);
  return options;
}

absl::Status ReadSampling(const OpenAiFields& body, v1::SamplingOptions* sampling) {
  RETURN_IF_ERROR(ReadFloats(body, sampling));
  ASSIGN_OR_RETURN(const std::optional<int64_t> top_k, body.Integer("top_k", -1, kMaxUint32));
  if (top_k.has_value()) sampling->set_top_k(*top_k == -1 ? 0 : static_cast<uint32_t>(*top_k));
  ASSIGN_OR_RETURN(const std::optional<uint64_t> seed, body.Bits64("seed"));
  if (seed.has_value()) sampling->set_seed(*seed);
  return ReadLogitBias(body, sampling);
}

absl::Status ReadCommon(const OpenAiFields& body, v1::ChatRequest* request) {
  return ReadCommonOf(body, request);
}

absl::Status ReadCommon(const OpenAiFields& body, v1::GenerateRequest* request) {
  return ReadCommonOf(body, request);
}

absl::Status RefuseUnsupported(const OpenAiFields& body) {
  constexpr absl::string_view kUnconstrained = "none: decoding cannot be constrained here";
  constexpr struct {
    absl::string_view key, wanted;
  } kMissing[] = {
      {"functions", "none: use tools"},    {"function_call", "none: use tool_choice"},
      {"audio", "none: answers are text"}, {"guided_json", kUnconstrained},
      {"guided_regex", kUnconstrained},    {"guided_choice", kUnconstrained},
      {"guided_grammar", kUnconstrained},  {"structured_outputs", kUnconstrained},
  };
  for (const auto& field : kMissing) {
    if (const JsonValue* value = body.Given(field.key); value != nullptr) {
      return WrongField(body.Path(field.key), *value, field.wanted);
    }
  }
  return RefuseResponseFormat(body);
}

}  // namespace conclave
