// A body of the HTTP door is refused in words that fit into an answer, or is a request that the
// engine takes or refuses. Every body is read as chat and as completion.
#include <string>

#include "common/check.h"
#include "common/limits.h"
#include "router/openai_chat.h"
#include "router/openai_completion.h"
#include "router/openai_error.h"
#include "router/prompt_builder.h"
#include "router/served_model.h"
#include "text/json_text.h"

namespace conclave {
namespace {

constexpr int64_t kMaxContext = 8192;

const ServedModel& DemoModel() {
  static const ServedModel* const model = [] {
    ServedModelOptions options;
    options.model_dir = CONCLAVE_SOURCE_DIR "/models/demo";
    options.model_name = "demo";
    auto loaded = LoadServedModel(options);
    CHECK(loaded.ok()) << loaded.status();
    return loaded->release();
  }();
  return *model;
}

void CheckRefusal(const absl::Status& status) {
  CHECK(status.code() == absl::StatusCode::kInvalidArgument ||
        status.code() == absl::StatusCode::kNotFound)
      << status;
  CHECK(!status.message().empty());
  const std::string body = OpenAiErrorJson(status);
  CHECK(ParseJson(body).ok()) << body;
}

// What protobuf cannot carry, as text that is not UTF-8, would be lost on the way to a worker.
template <typename Message>
void CheckTravels(const Message& message) {
  Message copy;
  CHECK(copy.ParseFromString(message.SerializeAsString())) << message.ShortDebugString();
}

void CheckPrepared(const absl::StatusOr<PreparedRequest>& prepared) {
  if (!prepared.ok()) return CheckRefusal(prepared.status());
  const v1::TokenRequest& tokens = prepared->tokens;
  CHECK_GT(tokens.prompt_ids_size(), 0);
  CHECK_LE(tokens.prompt_ids_size() + int64_t{tokens.max_tokens()}, kMaxContext);
  for (const uint32_t id : tokens.prompt_ids()) CHECK_LT(id, DemoModel().vocabulary().size());
  CHECK_GE(tokens.thinking().budget(), -1);
  CheckTravels(tokens);
}

template <typename Parsed, typename Prepare>
void CheckBody(const absl::StatusOr<Parsed>& parsed, Prepare prepare) {
  if (!parsed.ok()) {
    CHECK(parsed.status().code() == absl::StatusCode::kInvalidArgument) << parsed.status();
    return CheckRefusal(parsed.status());
  }
  CHECK(parsed->num_choices() >= 1 && parsed->num_choices() <= limits::kMaxHttpChoices);
  for (const int choice : {0, parsed->num_choices() - 1}) {
    const auto request = parsed->Choice(choice);
    CheckTravels(request);
    CheckPrepared(prepare(DemoModel(), request, kMaxContext));
  }
}

}  // namespace
}  // namespace conclave

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace conclave;
  const absl::string_view body(reinterpret_cast<const char*>(data), size);
  CheckBody(ParseOpenAiChat(body), PrepareChat);
  CheckBody(ParseOpenAiCompletion(body), PrepareGenerate);
  return 0;
}
