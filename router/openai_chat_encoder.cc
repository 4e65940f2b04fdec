#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "router/openai_json.h"
#include "router/openai_stream.h"

namespace conclave {
namespace {

OpenAiJson TokenJson(absl::string_view bytes, float logprob) {
  OpenAiJson numbers = OpenAiJson::array();
  for (const char byte : bytes) numbers.push_back(static_cast<unsigned char>(byte));
  return {{"token", std::string(bytes)},
          {"logprob", LogprobNumber(logprob)},
          {"bytes", std::move(numbers)}};
}

// Both encoders need these; each reads them in its own way.
struct Shared {
  OpenAiAnswerOptions options;
  OpenAiResponseInfo info;
  TokenBytes token_bytes;

  bool Wants(const v1::ToolCallDelta& call) const {
    return call.index() == 0 || !options.one_tool_call;
  }

  // One entry per token of the delta.
  OpenAiJson Logprobs(const v1::TextDelta& delta) const {
    OpenAiJson content = OpenAiJson::array();
    for (int i = 0; i < std::min(delta.ids_size(), delta.logprobs_size()); ++i) {
      OpenAiJson token = TokenJson(token_bytes(delta.ids(i)), delta.logprobs(i).logprob());
      OpenAiJson top = OpenAiJson::array();
      for (const v1::TokenLogprobs::Entry& entry : delta.logprobs(i).top()) {
        top.push_back(TokenJson(token_bytes(entry.id()), entry.logprob()));
      }
      token["top_logprobs"] = std::move(top);
      content.push_back(std::move(token));
    }
    return content;
  }
};

// ---- stream ----

class ChatStream final : public OpenAiEncoder<v1::ChatEvent> {
 public:
  explicit ChatStream(Shared shared)
      : shared_(std::move(shared)),
        writer_(shared_.info, "chat.completion.chunk", shared_.options.include_usage),
        usage_(shared_.options.n),
        num_calls_(static_cast<size_t>(shared_.options.n)) {}

  std::string Add(int choice, const v1::ChatEvent& event) override {
    switch (event.event_case()) {
      case v1::ChatEvent::kStarted:
        return Delta(choice, {{"role", "assistant"}, {"content", ""}});
      case v1::ChatEvent::kThinkingDelta: {
        const std::string& text = event.thinking_delta().text();
        if (text.empty() || !shared_.options.include_reasoning) return "";
        return Delta(choice, {{"reasoning_content", text}, {"reasoning", text}});
      }
      case v1::ChatEvent::kContentDelta:
        return Content(choice, event.content_delta());
      case v1::ChatEvent::kToolCallDelta:
        return ToolCall(choice, event.tool_call_delta());
      case v1::ChatEvent::kFinished:
        return End(choice, event.finished());
      default:
        return "";
    }
  }

  std::string Finish() override { return writer_.End(usage_); }

 private:
  static OpenAiJson ChoiceJson(int choice, OpenAiJson delta) {
    return {{"index", choice},
            {"delta", std::move(delta)},
            {"logprobs", nullptr},
            {"finish_reason", nullptr}};
  }

  std::string Delta(int choice, OpenAiJson delta) const {
    return writer_.Chunk(ChoiceJson(choice, std::move(delta)));
  }

  std::string Content(int choice, const v1::TextDelta& delta) const {
    OpenAiJson tokens =
        shared_.options.logprobs ? shared_.Logprobs(delta) : OpenAiJson(OpenAiJson::array());
    if (delta.text().empty() && tokens.empty()) return "";
    OpenAiJson json = ChoiceJson(choice, {{"content", delta.text()}});
    if (!tokens.empty()) json["logprobs"] = {{"content", std::move(tokens)}};
    return writer_.Chunk(json);
  }

  std::string ToolCall(int choice, const v1::ToolCallDelta& call) {
    if (!shared_.Wants(call)) return "";
    uint32_t& num_calls = num_calls_[static_cast<size_t>(choice)];
    OpenAiJson json = {{"index", call.index()}};
    OpenAiJson function = OpenAiJson::object();
    if (call.index() >= num_calls) {  // its first delta
      num_calls = call.index() + 1;
      json["id"] = call.id();
      json["type"] = "function";
      function["name"] = call.name();
    }
    function["arguments"] = call.arguments();
    json["function"] = std::move(function);
    return Delta(choice, {{"tool_calls", OpenAiJson::array({std::move(json)})}});
  }

  std::string End(int choice, const v1::Finished& finished) {
    usage_.Add(choice, finished.usage());
    OpenAiJson json = ChoiceJson(choice, OpenAiJson::object());
    json["finish_reason"] = FinishReason(finished.reason());
    if (shared_.options.thinking_report) json["thinking"] = ThinkingJson(finished.thinking());
    return writer_.Chunk(json);
  }

  const Shared shared_;
  const ChunkWriter writer_;
  UsageSum usage_;
  std::vector<uint32_t> num_calls_;  // begun, of each choice
};

// ---- whole ----

class ChatWhole final : public OpenAiEncoder<v1::ChatEvent> {
 public:
  explicit ChatWhole(Shared shared)
      : shared_(std::move(shared)),
        usage_(shared_.options.n),
        choices_(static_cast<size_t>(shared_.options.n)) {}

  std::string Add(int index, const v1::ChatEvent& event) override {
    Choice& choice = choices_[static_cast<size_t>(index)];
    switch (event.event_case()) {
      case v1::ChatEvent::kThinkingDelta:
        if (shared_.options.include_reasoning) choice.reasoning += event.thinking_delta().text();
        break;
      case v1::ChatEvent::kContentDelta:
        choice.content += event.content_delta().text();
        if (shared_.options.logprobs) {
          for (OpenAiJson& token : shared_.Logprobs(event.content_delta())) {
            choice.logprobs.push_back(std::move(token));
          }
        }
        break;
      case v1::ChatEvent::kToolCallDelta:
        AddToolCall(event.tool_call_delta(), &choice);
        break;
      case v1::ChatEvent::kFinished:
        choice.finished = event.finished();
        usage_.Add(index, event.finished().usage());
        break;
      default:
        break;
    }
    return "";
  }

  std::string Finish() override {
    OpenAiJson json = ResponseHead(shared_.info, "chat.completion");
    OpenAiJson choices = OpenAiJson::array();
    for (const Choice& choice : choices_) choices.push_back(ChoiceJson(choices.size(), choice));
    json["choices"] = std::move(choices);
    json["usage"] = usage_.ToJson();
    return DumpJson(json);
  }

 private:
  struct Call {
    std::string id, name, arguments;
  };
  struct Choice {
    std::string reasoning;
    std::string content;
    std::map<uint32_t, Call> calls;  // by index
    OpenAiJson logprobs = OpenAiJson::array();
    v1::Finished finished;
  };

  void AddToolCall(const v1::ToolCallDelta& delta, Choice* choice) const {
    if (!shared_.Wants(delta)) return;
    const auto [entry, is_new] = choice->calls.try_emplace(delta.index());
    if (is_new) entry->second = {delta.id(), delta.name(), ""};
    entry->second.arguments += delta.arguments();
  }

  OpenAiJson ChoiceJson(size_t index, const Choice& choice) const {
    OpenAiJson json = {{"index", index},
                       {"message", MessageJson(choice)},
                       {"logprobs", nullptr},
                       {"finish_reason", FinishReason(choice.finished.reason())}};
    if (shared_.options.logprobs) json["logprobs"] = {{"content", choice.logprobs}};
    if (shared_.options.thinking_report) {
      json["thinking"] = ThinkingJson(choice.finished.thinking());
    }
    return json;
  }

  static OpenAiJson MessageJson(const Choice& choice) {
    OpenAiJson message = {{"role", "assistant"}, {"content", nullptr}};
    if (!choice.content.empty() || choice.calls.empty()) message["content"] = choice.content;
    const OpenAiJson reasoning =
        choice.reasoning.empty() ? OpenAiJson() : OpenAiJson(choice.reasoning);
    message["reasoning_content"] = reasoning;
    message["reasoning"] = reasoning;
    if (choice.calls.empty()) return message;
    OpenAiJson calls = OpenAiJson::array();
    for (const auto& [index, call] : choice.calls) {
      calls.push_back({{"id", call.id},
                       {"type", "function"},
                       {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
    }
    message["tool_calls"] = std::move(calls);
    return message;
  }

  const Shared shared_;
  UsageSum usage_;
  std::vector<Choice> choices_;
};

}  // namespace

std::unique_ptr<OpenAiEncoder<v1::ChatEvent>> MakeOpenAiChatEncoder(
    const OpenAiChatRequest& request, OpenAiResponseInfo info, TokenBytes token_bytes) {
  Shared shared{request.answer, std::move(info), std::move(token_bytes)};
  if (request.answer.stream) return std::make_unique<ChatStream>(std::move(shared));
  return std::make_unique<ChatWhole>(std::move(shared));
}

}  // namespace conclave
