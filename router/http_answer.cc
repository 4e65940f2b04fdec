#include "router/http_answer.h"

#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "router/openai_error.h"

namespace conclave {
namespace {

// One answer. It lives until the engine has ended every choice: each holds it until then.
template <typename Event>
class Answer final : public std::enable_shared_from_this<Answer<Event>> {
 public:
  Answer(std::shared_ptr<HttpExchange> exchange, std::unique_ptr<OpenAiEncoder<Event>> encoder,
         HttpAnswerOptions options)
      : exchange_(std::move(exchange)),
        options_(std::move(options)),
        encoder_(std::move(encoder)),
        unfinished_(options_.num_choices) {}

  void Begin(BeginChoice<Event> begin);

 private:
  struct Choice final : public RequestObserver<Event> {
    Choice(std::shared_ptr<Answer> owner, int idx) : answer(std::move(owner)), index(idx) {}
    void OnEvents(std::vector<Event> events) override { answer->OnEvents(*this, events); }
    void OnEnd(absl::Status status) override {
      // This is destroyed with the last reference to the answer: maybe at this function's end.
      const std::shared_ptr<Answer> keep = std::move(answer);
      keep->OnEnd(*this, status);
    }

    std::shared_ptr<Answer> answer;
    const int index;
    std::shared_ptr<RequestHandle> handle;
    // Under the answer's lock:
    bool started = false;
    bool ended = false;
    int wanted = 0;        // Next() to be called so often
    bool pulling = false;  // by somebody who is at it
  };
  // What is to be done outside the lock. One thread at a time has one that writes.
  struct Step {
    std::optional<HttpResponse> send;
    bool start = false;
    std::string text;
    bool end = false;
    std::vector<Choice*> cancel;
    std::vector<Choice*> pull;
  };

  void OnEvents(Choice& choice, const std::vector<Event>& events);
  void OnEnd(Choice& choice, const absl::Status& status);
  void OnWritten(bool ok);
  void OnGone();

  // What follows from the state: write, end, or ask for more.
  Step Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Step Fail(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Adds that nothing more is wanted of the engine: what waits is asked for its end.
  void GiveUp(Step* step) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Run(Step step);
  // Asks for a choice's next call. That may come before Next() returns and ask again, which is then
  // done here and not one level deeper.
  void Pull(Choice* choice);
  HttpResponse Head() const;

  const std::shared_ptr<HttpExchange> exchange_;
  const HttpAnswerOptions options_;
  std::vector<std::unique_ptr<Choice>> choices_;

  absl::Mutex mutex_;
  const std::unique_ptr<OpenAiEncoder<Event>> encoder_ ABSL_PT_GUARDED_BY(mutex_);
  std::string pending_ ABSL_GUARDED_BY(mutex_);            // frames to be written
  std::vector<Choice*> held_ ABSL_GUARDED_BY(mutex_);      // their choices
  std::vector<Choice*> in_write_ ABSL_GUARDED_BY(mutex_);  // those of the frames being written
  int num_started_ ABSL_GUARDED_BY(mutex_) = 0;
  int unfinished_ ABSL_GUARDED_BY(mutex_);
  bool begun_ ABSL_GUARDED_BY(mutex_) = false;  // the stream
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool over_ ABSL_GUARDED_BY(mutex_) = false;    // nothing is added to the answer
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;  // its end is sent, or the client is gone
};

template <typename Event>
void Answer<Event>::Begin(BeginChoice<Event> begin) {
  exchange_->OnGone([weak = this->weak_from_this()] {
    if (const auto self = weak.lock()) self->OnGone();
  });
  // No choice calls before it is asked: all have begun by then.
  for (int i = 0; i < options_.num_choices; ++i) {
    auto choice = std::make_unique<Choice>(this->shared_from_this(), i);
    choice->handle = begin(i, choice.get());
    absl::MutexLock lock(&mutex_);
    choices_.push_back(std::move(choice));
  }
  Step step;
  {
    absl::MutexLock lock(&mutex_);
    if (over_) GiveUp(&step);  // the client is gone already
    for (const auto& choice : choices_) step.pull.push_back(choice.get());
  }
  Run(std::move(step));
}

template <typename Event>
void Answer<Event>::OnEvents(Choice& choice, const std::vector<Event>& events) {
  Step step;
  {
    absl::MutexLock lock(&mutex_);
    if (over_) {
      step.pull.push_back(&choice);
    } else {
      for (const Event& event : events) pending_ += encoder_->Add(choice.index, event);
      if (!std::exchange(choice.started, true)) ++num_started_;
      held_.push_back(&choice);
      step = Advance();
    }
  }
  Run(std::move(step));
}

template <typename Event>
void Answer<Event>::OnEnd(Choice& choice, const absl::Status& status) {
  Step step;
  {
    absl::MutexLock lock(&mutex_);
    choice.ended = true;
    --unfinished_;
    if (over_) return;
    if (!status.ok()) {
      step = Fail(status);
    } else if (unfinished_ == 0) {
      pending_ += encoder_->Finish();
      over_ = true;
      step = Advance();
    }
  }
  Run(std::move(step));
}

template <typename Event>
typename Answer<Event>::Step Answer<Event>::Advance() {
  Step step;
  if (closed_ || writing_) return step;
  if (!options_.stream) {
    step.pull = std::exchange(held_, {});
    if (!over_) return step;
    closed_ = true;
    step.send = Head();
    step.send->body = std::exchange(pending_, {});
    return step;
  }
  if (!begun_ && num_started_ < options_.num_choices) return step;
  if (pending_.empty() && !over_) {
    step.pull = std::exchange(held_, {});
    return step;
  }
  step.start = !std::exchange(begun_, true);
  step.text = std::exchange(pending_, {});
  step.end = closed_ = over_;
  writing_ = true;
  in_write_ = std::exchange(held_, {});
  return step;
}

template <typename Event>
typename Answer<Event>::Step Answer<Event>::Fail(const absl::Status& status) {
  over_ = true;
  Step step;
  if (begun_) {
    pending_ += OpenAiErrorFrame(status);
    step = Advance();
  } else {
    closed_ = true;
    step.send = OpenAiErrorResponse(status);
    step.send->headers.insert(step.send->headers.end(), options_.headers.begin(),
                              options_.headers.end());
  }
  GiveUp(&step);
  return step;
}

template <typename Event>
void Answer<Event>::GiveUp(Step* step) {
  for (const auto& choice : choices_) {
    if (!choice->ended) step->cancel.push_back(choice.get());
  }
  for (std::vector<Choice*>* waiting : {&held_, &in_write_}) {
    step->pull.insert(step->pull.end(), waiting->begin(), waiting->end());
    waiting->clear();
  }
}

template <typename Event>
void Answer<Event>::OnWritten(bool ok) {
  if (!ok) return OnGone();
  Step step;
  {
    absl::MutexLock lock(&mutex_);
    writing_ = false;
    std::vector<Choice*> written = std::exchange(in_write_, {});
    step = Advance();
    step.pull.insert(step.pull.end(), written.begin(), written.end());
  }
  Run(std::move(step));
}

template <typename Event>
void Answer<Event>::OnGone() {
  Step step;
  {
    absl::MutexLock lock(&mutex_);
    over_ = closed_ = true;
    GiveUp(&step);
  }
  Run(std::move(step));
}

template <typename Event>
void Answer<Event>::Run(Step step) {
  const std::shared_ptr<Answer> self = this->shared_from_this();
  if (step.send.has_value()) exchange_->Send(*std::move(step.send));
  if (step.start) exchange_->StartStream(Head());
  if (!step.text.empty()) {
    exchange_->Write(std::move(step.text), [self](bool ok) { self->OnWritten(ok); });
  }
  if (step.end) exchange_->EndStream();
  for (Choice* choice : step.cancel) choice->handle->Cancel();
  for (Choice* choice : step.pull) Pull(choice);
}

template <typename Event>
void Answer<Event>::Pull(Choice* choice) {
  {
    absl::MutexLock lock(&mutex_);
    ++choice->wanted;
    if (std::exchange(choice->pulling, true)) return;
  }
  for (;;) {
    {
      absl::MutexLock lock(&mutex_);
      if (choice->wanted == 0) {
        choice->pulling = false;
        return;
      }
      --choice->wanted;
    }
    choice->handle->Next();
  }
}

template <typename Event>
HttpResponse Answer<Event>::Head() const {
  HttpResponse head;
  head.headers = options_.headers;
  if (options_.stream) {
    head.content_type = "text/event-stream";
    head.headers.emplace_back("Cache-Control", "no-cache");
    head.headers.emplace_back("X-Accel-Buffering", "no");  // nginx would collect the frames
    head.keepalive = ": keepalive\n\n";
  }
  return head;
}

}  // namespace

template <typename Event>
void AnswerWithChoices(std::shared_ptr<HttpExchange> exchange,
                       std::unique_ptr<OpenAiEncoder<Event>> encoder, HttpAnswerOptions options,
                       BeginChoice<Event> begin) {
  std::make_shared<Answer<Event>>(std::move(exchange), std::move(encoder), std::move(options))
      ->Begin(begin);
}

template void AnswerWithChoices<v1::ChatEvent>(std::shared_ptr<HttpExchange>,
                                               std::unique_ptr<OpenAiEncoder<v1::ChatEvent>>,
                                               HttpAnswerOptions, BeginChoice<v1::ChatEvent>);
template void AnswerWithChoices<v1::GenerateEvent>(
    std::shared_ptr<HttpExchange>, std::unique_ptr<OpenAiEncoder<v1::GenerateEvent>>,
    HttpAnswerOptions, BeginChoice<v1::GenerateEvent>);

}  // namespace conclave
