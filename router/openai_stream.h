#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "proto/conclave/v1/inference.pb.h"
#include "router/openai_chat.h"
#include "router/openai_completion.h"

namespace conclave {

// What a response, or every chunk of it, says of itself.
struct OpenAiResponseInfo {
  std::string id;       // "chatcmpl-..." or "cmpl-..."
  int64_t created = 0;  // seconds since 1970
  std::string model;
  std::string fingerprint;  // system_fingerprint; empty: null
};

// The bytes of a token, as Vocabulary::Bytes has them. What it returns must stay valid.
using TokenBytes = std::function<absl::string_view(uint32_t id)>;

// Turns the events of one request's choices into what the client gets: server-sent events, or one
// JSON body. Both say the same for the same events. Not thread-safe: the events of different
// choices come in any order, but one at a time.
template <typename Event>
class OpenAiEncoder {
 public:
  virtual ~OpenAiEncoder() = default;
  // choice: 0..num_choices - 1. Returns what to send now: whole frames, often none, and never any
  // if the request does not stream.
  virtual std::string Add(int choice, const Event& event) = 0;
  // After `finished` of every choice, once. Stream: the usage chunk, if asked for, and "[DONE]".
  // Else: the response's body.
  virtual std::string Finish() = 0;
};

// Of `request` only the options are used, and copied.
// Chat: the first delta of a choice has the role and an empty content; reasoning comes as
// reasoning_content and as reasoning; finish_reason is stop (also if Control cancelled), length or
// tool_calls. content is null only beside tool calls. logprobs hold the tokens of the answer, its
// end token among them, those of thinking not. Usage sums the choices; a prompt counts once.
std::unique_ptr<OpenAiEncoder<v1::ChatEvent>> MakeOpenAiChatEncoder(
    const OpenAiChatRequest& request, OpenAiResponseInfo info, TokenBytes token_bytes);

// Completion: thinking is part of the text, as the model wrote it. text_offset counts characters.
std::unique_ptr<OpenAiEncoder<v1::GenerateEvent>> MakeOpenAiCompletionEncoder(
    const OpenAiCompletionRequest& request, OpenAiResponseInfo info, TokenBytes token_bytes);

// A stream that has begun can fail only inside: "data: {"error":{...}}\n\n". Nothing follows it.
std::string OpenAiErrorFrame(const absl::Status& status);

}  // namespace conclave
