#include "text/tokenizer.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "text/byte_pair_encoder.h"
#include "text/normalizer.h"
#include "text/pretoken_cache.h"
#include "text/pretokenizer.h"
#include "text/tokenizer_file.h"
#include "text/unicode_properties.h"
#include "text/utf8.h"

namespace conclave {
namespace {

// Finds added tokens: leftmost, and of those that start there the longest.
class AddedTokenFinder {
 public:
  explicit AddedTokenFinder(const std::vector<AddedToken>& tokens) : tokens_(tokens) {
    std::sort(tokens_.begin(), tokens_.end(), [](const AddedToken& a, const AddedToken& b) {
      return a.content.size() > b.content.size();
    });
    for (const AddedToken& token : tokens_) starts_[static_cast<uint8_t>(token.content[0])] = true;
    one_start_ = std::count(starts_.begin(), starts_.end(), true) == 1;
  }

  // The first at or after `begin`; null if there is none. Sets where it is.
  const AddedToken* Find(absl::string_view text, size_t begin, size_t* where) const {
    if (tokens_.empty()) return nullptr;
    for (size_t i = begin; i < text.size(); ++i) {
      if (one_start_) {  // Qwen3's all start with '<'
        i = text.find(tokens_[0].content[0], i);
        if (i == absl::string_view::npos) return nullptr;
      } else if (!starts_[static_cast<uint8_t>(text[i])]) {
        continue;
      }
      for (const AddedToken& token : tokens_) {
        if (text.compare(i, token.content.size(), token.content) == 0) {
          *where = i;
          return &token;
        }
      }
    }
    return nullptr;
  }

 private:
  std::vector<AddedToken> tokens_;  // longest first
  std::array<bool, 256> starts_ = {};
  bool one_start_ = false;
};

// Caches that no Encode uses now: as many as there ever were calls at the same time.
class CachePool {
 public:
  std::unique_ptr<PretokenCache> Take() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!idle_.empty()) {
        std::unique_ptr<PretokenCache> cache = std::move(idle_.back());
        idle_.pop_back();
        return cache;
      }
    }
    return std::make_unique<PretokenCache>();
  }
  void Return(std::unique_ptr<PretokenCache> cache) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (idle_.size() < kMaxIdle) idle_.push_back(std::move(cache));
  }

 private:
  static constexpr size_t kMaxIdle = 16;  // 64 MiB

  // Not absl::Mutex: Debian's libabsl is built without ThreadSanitizer, which therefore sees that
  // lock guard nothing and reports every cache handed from one thread to the next.
  std::mutex mutex_;
  std::vector<std::unique_ptr<PretokenCache>> idle_;  // guarded by mutex_
};

}  // namespace

struct Tokenizer::Impl {
  explicit Impl(TokenizerFile file)
      : vocabulary(std::move(file.vocabulary)),
        encoder(file.byte_ids, file.merges),
        added_tokens(vocabulary.added_tokens()) {}

  // Appends the ids of a text in which no added token is looked for.
  void EncodePiece(absl::string_view text, PretokenCache* cache, std::string* scratch,
                   std::vector<uint32_t>* ids) const {
    text = NormalizeNfc(text, scratch);
    const UnicodeProperties& unicode = UnicodeProperties::Get();
    while (!text.empty()) {
      const size_t length = PretokenLength(unicode, text);
      const absl::string_view pretoken = text.substr(0, length);
      if (length <= PretokenCache::kMaxKeyBytes) {
        const PretokenCache::Key key = cache->MakeKey(pretoken, text.size());
        if (!cache->Find(key, ids)) {
          const size_t before = ids->size();
          encoder.Encode(pretoken, ids);
          const size_t num_ids = ids->size() - before;
          if (num_ids <= PretokenCache::kMaxIds) cache->Put(key, ids->data() + before, num_ids);
        }
      } else {
        encoder.Encode(pretoken, ids);
      }
      text.remove_prefix(length);
    }
  }

  Vocabulary vocabulary;
  BytePairEncoder encoder;
  AddedTokenFinder added_tokens;
  mutable CachePool caches;
};

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& model_dir) {
  ASSIGN_OR_RETURN(TokenizerFile file,
                   LoadTokenizerFile(absl::StrCat(model_dir, "/tokenizer.json")));
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::make_unique<Impl>(std::move(file))));
}

absl::StatusOr<std::vector<uint32_t>> Tokenizer::Encode(absl::string_view utf8_text,
                                                        AddedTokens mode) const {
  const size_t valid = ValidUtf8Prefix(utf8_text);
  if (valid != utf8_text.size()) {
    return absl::InvalidArgumentError(absl::StrCat("text is not valid UTF-8 at byte ", valid,
                                                   " of ", utf8_text.size(), ", want UTF-8"));
  }
  std::vector<uint32_t> ids;
  ids.reserve(utf8_text.size() / 3 + 8);
  std::string scratch;
  std::unique_ptr<PretokenCache> cache = impl_->caches.Take();
  size_t done = 0;
  while (done < utf8_text.size()) {
    size_t where = utf8_text.size();
    const AddedToken* token =
        mode == AddedTokens::kMatch ? impl_->added_tokens.Find(utf8_text, done, &where) : nullptr;
    impl_->EncodePiece(utf8_text.substr(done, where - done), cache.get(), &scratch, &ids);
    done = where;
    if (token != nullptr) {
      ids.push_back(token->id);
      done += token->content.size();
    }
  }
  impl_->caches.Return(std::move(cache));
  return ids;
}

std::string Tokenizer::Decode(absl::Span<const uint32_t> ids, bool skip_special) const {
  std::string text;
  Utf8Repairer repairer;
  for (const uint32_t id : ids) {
    if (skip_special && impl_->vocabulary.IsSpecial(id)) continue;
    repairer.Append(impl_->vocabulary.Bytes(id), &text);
  }
  repairer.Flush(&text);
  return text;
}

const Vocabulary& Tokenizer::vocabulary() const { return impl_->vocabulary; }

}  // namespace conclave
