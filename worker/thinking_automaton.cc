#include "worker/thinking_automaton.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "common/check.h"

namespace conclave {
namespace {

constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();
constexpr int64_t kMaxMissingBytes = 3;

// Length of the character that `lead` begins; 0 if it begins none.
size_t CharacterBytes(unsigned char lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xc2 && lead <= 0xdf) return 2;
  if (lead >= 0xe0 && lead <= 0xef) return 3;
  if (lead >= 0xf0 && lead <= 0xf4) return 4;
  return 0;
}

// True if `byte` may stand at `idx` (1..3) of a character that begins with `lead` (Unicode
// standard, table 3-7: no overlong forms, no surrogates, nothing above U+10FFFF).
bool Continues(unsigned char lead, size_t idx, unsigned char byte) {
  unsigned char low = 0x80, high = 0xbf;
  if (idx == 1) {
    if (lead == 0xe0) low = 0xa0;
    if (lead == 0xed) high = 0x9f;
    if (lead == 0xf0) low = 0x90;
    if (lead == 0xf4) high = 0x8f;
  }
  return byte >= low && byte <= high;
}

bool IsWholeUtf8(absl::string_view bytes) {
  for (size_t i = 0; i < bytes.size();) {
    const auto lead = static_cast<unsigned char>(bytes[i]);
    const size_t length = CharacterBytes(lead);
    if (length == 0 || i + length > bytes.size()) return false;
    for (size_t j = 1; j < length; ++j) {
      if (!Continues(lead, j, static_cast<unsigned char>(bytes[i + j]))) return false;
    }
    i += length;
  }
  return true;
}

}  // namespace

absl::string_view IncompleteUtf8Tail(absl::string_view bytes) {
  for (size_t length = std::min<size_t>(kMaxMissingBytes, bytes.size()); length > 0; --length) {
    const absl::string_view tail = bytes.substr(bytes.size() - length);
    const auto lead = static_cast<unsigned char>(tail[0]);
    if (CharacterBytes(lead) <= length) continue;
    bool continues = true;
    for (size_t j = 1; j < length; ++j) {
      continues = continues && Continues(lead, j, static_cast<unsigned char>(tail[j]));
    }
    if (continues) return tail;
  }
  return {};
}

int MissingUtf8Bytes(absl::string_view tail) {
  if (tail.empty()) return 0;
  return static_cast<int>(CharacterBytes(static_cast<unsigned char>(tail[0])) - tail.size());
}

std::vector<uint32_t> IdsThatSplitCharacters(const TokenBytes& token_bytes, uint32_t num_ids) {
  std::vector<uint32_t> ids;
  for (uint32_t id = 0; id < num_ids; ++id) {
    if (!IsWholeUtf8(token_bytes(id))) ids.push_back(id);
  }
  return ids;
}

ThinkingAutomaton::ThinkingAutomaton(ThinkingAutomatonOptions options, TokenBytes token_bytes)
    : options_(std::move(options)), token_bytes_(std::move(token_bytes)) {
  state_.budget = options_.budget;
  if (!options_.enabled) return;
  if (options_.starts_inside) {
    Enter();
  } else if (prefix_due()) {
    StartForcing();
  }
}

void ThinkingAutomaton::Restore(const ThinkingSnapshot& snapshot, int64_t num_generated) {
  state_ = snapshot;
  num_generated_ = num_generated;
  if (must_force()) StartForcing();
}

void ThinkingAutomaton::StartForcing() {
  state_.phase = ThinkingPhase::kForcing;
  due_.clear();
  const auto add = [this](const std::vector<uint32_t>& ids) {
    due_.insert(due_.end(), ids.begin(), ids.end());
  };
  if (state_.ended_by == ThinkingEndedBy::kNatural) {
    add(options_.answer_separator_ids);
  } else if (state_.ended_by != ThinkingEndedBy::kNone) {
    add(options_.forced_ids);
  }
  if (prefix_due()) add(options_.answer_prefix_ids);
}

void ThinkingAutomaton::OnSampled(uint32_t id) {
  ++num_generated_;
  if (!options_.enabled) return;
  CHECK(state_.phase != ThinkingPhase::kForcing) << "sampled while ids were to be forced";
  const bool was_in_call = state_.in_tool_call;
  TrackToolCall(id);
  const bool thinking = state_.phase == ThinkingPhase::kThinking;
  if (thinking && id == options_.end_id) {
    state_.phase = ThinkingPhase::kAnswer;
    state_.ended_by = ThinkingEndedBy::kNatural;
    state_.partial_utf8.clear();
    state_.in_tool_call = false;
    if (prefix_due()) StartForcing();
  } else if (thinking) {
    // A call written inside the block is not thinking: it may be long, and must not be cut.
    // Its closing tag is of the call; one that closes nothing is an id like any other.
    if (was_in_call || state_.in_tool_call) {
      state_.partial_utf8.clear();  // a tag ends whatever character was open
    } else {
      ++state_.used;
      TrackBytes(id);
    }
    MaybeForce();
  } else if (id == options_.start_id && !state_.in_tool_call) {
    Enter();
  }
}

void ThinkingAutomaton::TrackToolCall(uint32_t id) {
  if (!has_tool_tags()) return;
  if (id == options_.tool_call_start_id) state_.in_tool_call = true;
  if (id == options_.tool_call_end_id) state_.in_tool_call = false;
}

void ThinkingAutomaton::Enter() {
  state_.phase = ThinkingPhase::kThinking;
  state_.ended_by = ThinkingEndedBy::kNone;
  state_.partial_utf8.clear();
  MaybeForce();
}

void ThinkingAutomaton::TrackBytes(uint32_t id) {
  const absl::string_view bytes = token_bytes_(id);
  if (bytes.empty()) {  // a control token: a character does not go on behind it
    state_.partial_utf8.clear();
    return;
  }
  state_.partial_utf8.append(bytes.data(), bytes.size());
  state_.partial_utf8 = std::string(IncompleteUtf8Tail(state_.partial_utf8));
}

int64_t ThinkingAutomaton::Room() const {
  const int64_t of_budget = state_.budget < 0 ? kUnlimited : state_.budget - state_.used;
  if (options_.answer_reserve == 0) return of_budget;
  const size_t num_forced =
      options_.forced_ids.size() + (prefix_due() ? options_.answer_prefix_ids.size() : 0);
  const int64_t of_max_tokens = options_.max_tokens - options_.answer_reserve -
                                static_cast<int64_t>(num_forced) - num_generated_;
  return std::min(of_budget, of_max_tokens);
}

void ThinkingAutomaton::MaybeForce() {
  if (state_.in_tool_call || !state_.partial_utf8.empty()) return;
  ThinkingEndedBy reason = ThinkingEndedBy::kNone;
  if (state_.finish_requested) {
    reason = ThinkingEndedBy::kClient;
  } else if (state_.budget >= 0 && state_.used >= state_.budget) {
    reason = ThinkingEndedBy::kBudget;
  } else if (Room() <= 0) {
    reason = ThinkingEndedBy::kAnswerReserve;
  }
  if (reason == ThinkingEndedBy::kNone) return;
  state_.ended_by = reason;
  StartForcing();
}

void ThinkingAutomaton::OnForced() {
  CHECK(must_force());
  num_generated_ += static_cast<int64_t>(due_.size());
  const bool early_stop =
      state_.ended_by != ThinkingEndedBy::kNone && state_.ended_by != ThinkingEndedBy::kNatural;
  if (early_stop) {
    for (uint32_t id : options_.forced_ids) {
      if (id != options_.end_id) ++state_.forced;
    }
  }
  if (prefix_due()) {
    state_.prefix_forced = true;
    for (uint32_t id : options_.answer_prefix_ids) TrackToolCall(id);
  }
  due_.clear();
  state_.phase = ThinkingPhase::kAnswer;
}

std::vector<uint32_t> ThinkingAutomaton::ForbiddenIds(
    absl::Span<const uint32_t> splitting_ids) const {
  std::vector<uint32_t> forbidden;
  if (state_.phase != ThinkingPhase::kThinking || state_.in_tool_call) return forbidden;
  const int64_t room = Room();
  if (room > kMaxMissingBytes) return forbidden;
  // After the next id room - 1 more may follow, and in the worst case each adds one byte.
  std::string bytes;
  for (uint32_t id : splitting_ids) {
    bytes.assign(state_.partial_utf8);
    bytes.append(token_bytes_(id).data(), token_bytes_(id).size());
    if (MissingUtf8Bytes(IncompleteUtf8Tail(bytes)) > room - 1) forbidden.push_back(id);
  }
  return forbidden;
}

void ThinkingAutomaton::RequestFinish() {
  if (!options_.enabled) return;
  state_.finish_requested = true;
  if (state_.phase == ThinkingPhase::kThinking) MaybeForce();
}

void ThinkingAutomaton::SetBudget(int64_t budget) {
  if (!options_.enabled) return;
  const int64_t needed = state_.used + MissingUtf8Bytes(state_.partial_utf8);
  state_.budget = budget < 0 ? -1 : std::max(budget, needed);
  if (state_.phase == ThinkingPhase::kThinking) MaybeForce();
}

}  // namespace conclave
