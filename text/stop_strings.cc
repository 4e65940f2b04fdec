#include "text/stop_strings.h"

#include <algorithm>

namespace conclave {

StopStrings::StopStrings(const std::vector<std::string>& stops) {
  for (const std::string& stop : stops) {
    if (stop.empty()) continue;
    Matcher matcher;
    matcher.stop = stop;
    matcher.fallback.assign(stop.size() + 1, 0);
    for (size_t i = 1, border = 0; i < stop.size(); ++i) {
      while (border > 0 && stop[i] != stop[border]) border = matcher.fallback[border];
      if (stop[i] == stop[border]) ++border;
      matcher.fallback[i + 1] = border;
    }
    matchers_.push_back(std::move(matcher));
  }
}

std::string StopStrings::Push(absl::string_view text) {
  if (stopped_) return "";
  std::string buffer = std::move(held_);
  size_t i = buffer.size();  // what was held back has been matched already
  buffer.append(text.data(), text.size());
  for (; i < buffer.size(); ++i) {
    const Matcher* longest = nullptr;
    for (Matcher& matcher : matchers_) {
      size_t& matched = matcher.matched;
      while (matched > 0 && buffer[i] != matcher.stop[matched]) matched = matcher.fallback[matched];
      if (buffer[i] == matcher.stop[matched]) ++matched;
      if (matched == matcher.stop.size() &&
          (longest == nullptr || matcher.stop.size() > longest->stop.size())) {
        longest = &matcher;
      }
    }
    if (longest != nullptr) {
      stopped_ = true;
      matched_ = longest->stop;
      held_.clear();
      buffer.resize(i + 1 - longest->stop.size());
      return buffer;
    }
  }
  size_t num_held = 0;
  for (const Matcher& matcher : matchers_) num_held = std::max(num_held, matcher.matched);
  held_ = buffer.substr(buffer.size() - num_held);
  buffer.resize(buffer.size() - num_held);
  return buffer;
}

std::string StopStrings::Flush() {
  std::string text = std::move(held_);
  held_.clear();
  return text;
}

}  // namespace conclave
