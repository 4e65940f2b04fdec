#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "proto/conclave/v1/inference.pb.h"
#include "router/http_server.h"
#include "router/openai_stream.h"
#include "router/request_observer.h"

namespace conclave {

struct HttpAnswerOptions {
  int num_choices = 1;
  bool stream = false;
  std::vector<std::pair<std::string, std::string>> headers;  // of whatever is answered
};

// Begins choice i of a request with the engine. Called once for each, before this function returns.
template <typename Event>
using BeginChoice =
    absl::FunctionRef<std::shared_ptr<RequestHandle>(int choice, RequestObserver<Event>* observer)>;

// Answers one HTTP request with what the engine says of its choices: one JSON body, or a stream of
// frames that begins once every choice has. A choice is asked for more when what it said last has
// been written, so that a slow client holds back its own request alone. If a choice fails the whole
// answer does, as an HTTP status before the stream has begun and as an error frame after that; its
// siblings are cancelled, and so are all when the client goes.
template <typename Event>
void AnswerWithChoices(std::shared_ptr<HttpExchange> exchange,
                       std::unique_ptr<OpenAiEncoder<Event>> encoder, HttpAnswerOptions options,
                       BeginChoice<Event> begin);

extern template void AnswerWithChoices<v1::ChatEvent>(std::shared_ptr<HttpExchange>,
                                                      std::unique_ptr<OpenAiEncoder<v1::ChatEvent>>,
                                                      HttpAnswerOptions,
                                                      BeginChoice<v1::ChatEvent>);
extern template void AnswerWithChoices<v1::GenerateEvent>(
    std::shared_ptr<HttpExchange>, std::unique_ptr<OpenAiEncoder<v1::GenerateEvent>>,
    HttpAnswerOptions, BeginChoice<v1::GenerateEvent>);

}  // namespace conclave
