#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "router/openai_json.h"
#include "router/openai_stream.h"
#include "text/utf8.h"

namespace conclave {
namespace {

constexpr char kObject[] = "text_completion";

int64_t NumCharacters(absl::string_view utf8) {
  return std::count_if(utf8.begin(), utf8.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;  // not a continuation byte
  });
}

// Tokens are keys here, and those that are no whole characters must stay apart.
std::string TokenName(absl::string_view bytes) {
  if (ValidUtf8Prefix(bytes) == bytes.size()) return std::string(bytes);
  std::string name = "bytes:";
  for (const char byte : bytes) {
    absl::StrAppend(&name, "\\x", absl::Hex(static_cast<unsigned char>(byte), absl::kZeroPad2));
  }
  return name;
}

// {tokens, token_logprobs, top_logprobs, text_offset} of the legacy API. Feed it every token of a
// choice in order.
class LegacyLogprobs {
 public:
  void Add(const v1::TextDelta& delta, const TokenBytes& token_bytes) {
    for (int i = 0; i < std::min(delta.ids_size(), delta.logprobs_size()); ++i) {
      const absl::string_view bytes = token_bytes(delta.ids(i));
      const v1::TokenLogprobs& logprobs = delta.logprobs(i);
      tokens_.push_back(TokenName(bytes));
      token_logprobs_.push_back(LogprobNumber(logprobs.logprob()));
      OpenAiJson top = OpenAiJson::object();
      for (const v1::TokenLogprobs::Entry& entry : logprobs.top()) {
        top[TokenName(token_bytes(entry.id()))] = LogprobNumber(entry.logprob());
      }
      top[TokenName(bytes)] = LogprobNumber(logprobs.logprob());
      top_logprobs_.push_back(std::move(top));
      text_offset_.push_back(offset_);
      std::string text;
      repairer_.Append(bytes, &text);
      offset_ += NumCharacters(text);
    }
  }

  bool empty() const { return tokens_.empty(); }

  // What was added since the last call.
  OpenAiJson Take() {
    OpenAiJson json = {{"tokens", std::exchange(tokens_, OpenAiJson::array())},
                       {"token_logprobs", std::exchange(token_logprobs_, OpenAiJson::array())},
                       {"top_logprobs", std::exchange(top_logprobs_, OpenAiJson::array())},
                       {"text_offset", std::exchange(text_offset_, OpenAiJson::array())}};
    return json;
  }

 private:
  OpenAiJson tokens_ = OpenAiJson::array();
  OpenAiJson token_logprobs_ = OpenAiJson::array();
  OpenAiJson top_logprobs_ = OpenAiJson::array();
  OpenAiJson text_offset_ = OpenAiJson::array();
  int64_t offset_ = 0;
  Utf8Repairer repairer_;
};

struct Shared {
  OpenAiAnswerOptions options;
  OpenAiResponseInfo info;
  TokenBytes token_bytes;
  std::vector<std::string> echoes;  // text of each choice's prompt; empty without echo

  OpenAiJson ChoiceJson(size_t choice, std::string text) const {
    return {{"index", choice},
            {"text", std::move(text)},
            {"logprobs", nullptr},
            {"finish_reason", nullptr}};
  }

  void SetEnd(const v1::Finished& finished, OpenAiJson* choice) const {
    (*choice)["finish_reason"] = FinishReason(finished.reason());
    if (options.thinking_report) (*choice)["thinking"] = ThinkingJson(finished.thinking());
  }
};

class CompletionStream final : public OpenAiEncoder<v1::GenerateEvent> {
 public:
  explicit CompletionStream(Shared shared)
      : shared_(std::move(shared)),
        writer_(shared_.info, kObject, shared_.options.include_usage),
        usage_(shared_.options.n),
        logprobs_(shared_.echoes.size()) {}

  std::string Add(int choice, const v1::GenerateEvent& event) override {
    const size_t index = static_cast<size_t>(choice);
    switch (event.event_case()) {
      case v1::GenerateEvent::kStarted:
        if (shared_.echoes[index].empty()) return "";
        return writer_.Chunk(shared_.ChoiceJson(index, shared_.echoes[index]));
      case v1::GenerateEvent::kDelta: {
        if (shared_.options.logprobs) logprobs_[index].Add(event.delta(), shared_.token_bytes);
        if (event.delta().text().empty() && logprobs_[index].empty()) return "";
        OpenAiJson json = shared_.ChoiceJson(index, event.delta().text());
        if (!logprobs_[index].empty()) json["logprobs"] = logprobs_[index].Take();
        return writer_.Chunk(json);
      }
      case v1::GenerateEvent::kFinished: {
        usage_.Add(choice, event.finished().usage());
        OpenAiJson json = shared_.ChoiceJson(index, "");
        shared_.SetEnd(event.finished(), &json);
        return writer_.Chunk(json);
      }
      default:
        return "";
    }
  }

  std::string Finish() override { return writer_.End(usage_); }

 private:
  const Shared shared_;
  const ChunkWriter writer_;
  UsageSum usage_;
  std::vector<LegacyLogprobs> logprobs_;
};

class CompletionWhole final : public OpenAiEncoder<v1::GenerateEvent> {
 public:
  explicit CompletionWhole(Shared shared)
      : shared_(std::move(shared)), usage_(shared_.options.n), choices_(shared_.echoes.size()) {
    for (size_t i = 0; i < choices_.size(); ++i) choices_[i].text = shared_.echoes[i];
  }

  std::string Add(int index, const v1::GenerateEvent& event) override {
    Choice& choice = choices_[static_cast<size_t>(index)];
    if (event.has_delta()) {
      choice.text += event.delta().text();
      if (shared_.options.logprobs) choice.logprobs.Add(event.delta(), shared_.token_bytes);
    } else if (event.has_finished()) {
      choice.finished = event.finished();
      usage_.Add(index, event.finished().usage());
    }
    return "";
  }

  std::string Finish() override {
    OpenAiJson json = ResponseHead(shared_.info, kObject);
    OpenAiJson choices = OpenAiJson::array();
    for (Choice& choice : choices_) {
      OpenAiJson choice_json = shared_.ChoiceJson(choices.size(), std::move(choice.text));
      if (shared_.options.logprobs) choice_json["logprobs"] = choice.logprobs.Take();
      shared_.SetEnd(choice.finished, &choice_json);
      choices.push_back(std::move(choice_json));
    }
    json["choices"] = std::move(choices);
    json["usage"] = usage_.ToJson();
    return DumpJson(json);
  }

 private:
  struct Choice {
    std::string text;
    LegacyLogprobs logprobs;
    v1::Finished finished;
  };

  const Shared shared_;
  UsageSum usage_;
  std::vector<Choice> choices_;
};

std::string PromptText(const v1::GenerateRequest& request, const TokenBytes& token_bytes) {
  if (request.has_text()) return request.text();
  std::string text;
  Utf8Repairer repairer;
  for (const uint32_t id : request.token_ids().ids()) repairer.Append(token_bytes(id), &text);
  repairer.Flush(&text);
  return text;
}

}  // namespace

std::unique_ptr<OpenAiEncoder<v1::GenerateEvent>> MakeOpenAiCompletionEncoder(
    const OpenAiCompletionRequest& request, OpenAiResponseInfo info, TokenBytes token_bytes) {
  Shared shared{request.answer, std::move(info), std::move(token_bytes), {}};
  shared.echoes.resize(static_cast<size_t>(request.num_choices()));
  for (size_t i = 0; request.echo && i < shared.echoes.size(); ++i) {
    shared.echoes[i] =
        PromptText(request.prompts[i / static_cast<size_t>(request.answer.n)], shared.token_bytes);
  }
  if (request.answer.stream) return std::make_unique<CompletionStream>(std::move(shared));
  return std::make_unique<CompletionWhole>(std::move(shared));
}

}  // namespace conclave
