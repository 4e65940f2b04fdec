#include "text/tokenizer_file.h"

#include <cstddef>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"
#include "text/file.h"
#include "text/pretokenizer.h"
#include "text/utf8.h"
#include "text/vocabulary_builder.h"

namespace conclave {
namespace {

using nlohmann::json;
using TokenIds = absl::flat_hash_map<std::string, uint32_t>;  // by bytes

// tokenizer.json writes each byte as a printable character: printable Latin-1 bytes as they are,
// the others, in order, from U+0100.
class ByteAlphabet {
 public:
  ByteAlphabet() {
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool is_printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
      bytes_[is_printable ? static_cast<char32_t>(byte) : next++] = static_cast<char>(byte);
    }
  }

  // False if `text`, which is valid UTF-8, has a character that stands for no byte.
  bool Decode(absl::string_view text, std::string* bytes) const {
    bytes->clear();
    while (!text.empty()) {
      const CodePoint code_point = DecodeValidUtf8(text);
      const auto it = bytes_.find(code_point.value);
      if (it == bytes_.end()) return false;
      bytes->push_back(it->second);
      text.remove_prefix(static_cast<size_t>(code_point.num_bytes));
    }
    return true;
  }

 private:
  absl::flat_hash_map<char32_t, char> bytes_;
};

// Reads one file; its methods return what the caller of LoadTokenizerFile sees.
class Reader {
 public:
  Reader(std::string path, json root) : path_(std::move(path)), root_(std::move(root)) {}

  absl::Status CheckModel() const {
    RETURN_IF_ERROR(CheckField("/model/type", {"BPE"}));
    RETURN_IF_ERROR(CheckField("/model/dropout", {nullptr, 0.0}));
    RETURN_IF_ERROR(CheckField("/model/unk_token", {nullptr}));
    RETURN_IF_ERROR(CheckField("/model/continuing_subword_prefix", {nullptr, ""}));
    RETURN_IF_ERROR(CheckField("/model/end_of_word_suffix", {nullptr, ""}));
    RETURN_IF_ERROR(CheckField("/model/byte_fallback", {nullptr, false}));
    return CheckField("/decoder/type", {"ByteLevel"});
  }

  // What happens to a text before the merges.
  absl::Status CheckPipeline() const {
    RETURN_IF_ERROR(CheckField("/model/ignore_merges", {nullptr, false}));
    RETURN_IF_ERROR(CheckField("/normalizer/type", {"NFC"}));
    RETURN_IF_ERROR(CheckField("/pre_tokenizer/type", {"Sequence"}));
    const std::string steps = "/pre_tokenizer/pretokenizers";
    RETURN_IF_ERROR(CheckField(steps + "/2", {nullptr}));
    RETURN_IF_ERROR(CheckField(steps + "/0/type", {"Split"}));
    RETURN_IF_ERROR(CheckField(steps + "/0/pattern/Regex",
                               {std::string(kQwenSplitPattern.data(), kQwenSplitPattern.size())}));
    RETURN_IF_ERROR(CheckField(steps + "/0/behavior", {"Isolated"}));
    RETURN_IF_ERROR(CheckField(steps + "/0/invert", {nullptr, false}));
    RETURN_IF_ERROR(CheckField(steps + "/1/type", {"ByteLevel"}));
    RETURN_IF_ERROR(CheckField(steps + "/1/add_prefix_space", {false}));
    RETURN_IF_ERROR(CheckField(steps + "/1/use_regex", {false}));
    // ByteLevel only moves offsets; any other would add tokens.
    return CheckField("/post_processor/type", {nullptr, "ByteLevel"});
  }

  absl::StatusOr<Vocabulary> ReadVocabulary(TokenIds* ids) const {
    const json* vocab = Find("/model/vocab");
    if (vocab == nullptr || !vocab->is_object()) return Broken("/model/vocab", vocab, "an object");
    const ByteAlphabet alphabet;
    VocabularyBuilder builder;
    std::string bytes;
    ids->reserve(vocab->size());
    for (const auto& [text, id] : vocab->items()) {
      if (!id.is_number_unsigned() || id.get<uint64_t>() >= kMaxVocabularySize) {
        return Broken(absl::StrCat("/model/vocab/", text), &id, "an id");
      }
      if (!alphabet.Decode(text, &bytes) || bytes.empty()) {
        return errors::BadCheckpoint(path_, "", absl::StrCat("token \"", text, "\""),
                                     "one or more characters of the byte-level alphabet");
      }
      const uint32_t value = id.get<uint32_t>();
      RETURN_IF_ERROR(BrokenIf(builder.Add(value, bytes)));
      ids->emplace(bytes, value);
    }
    RETURN_IF_ERROR(ReadAddedTokens(&builder));
    return std::move(builder).Build();
  }

  absl::Status ReadMerges(const TokenIds& ids, std::vector<Merge>* merges) const {
    const json* list = Find("/model/merges");
    if (list == nullptr || !list->is_array()) return Broken("/model/merges", list, "an array");
    if (list->size() > kMaxMerges) {
      return errors::BadCheckpoint(path_, "", absl::StrCat(list->size(), " merges"),
                                   absl::StrCat("at most ", kMaxMerges));
    }
    const ByteAlphabet alphabet;
    merges->reserve(list->size());
    std::string left, right;
    for (const json& item : *list) {
      if (!SplitMerge(item, alphabet, &left, &right)) {
        return Broken(absl::StrCat("/model/merges/", merges->size()), &item,
                      "two tokens as \"a b\" or [\"a\", \"b\"]");
      }
      const auto left_it = ids.find(left), right_it = ids.find(right);
      const auto result_it = ids.find(left + right);
      if (left_it == ids.end() || right_it == ids.end() || result_it == ids.end()) {
        return Broken(absl::StrCat("/model/merges/", merges->size()), &item,
                      "tokens of the vocabulary that make one of it");
      }
      merges->push_back({left_it->second, right_it->second, result_it->second});
    }
    return absl::OkStatus();
  }

  absl::Status ReadByteIds(const TokenIds& ids, std::array<uint32_t, 256>* byte_ids) const {
    for (size_t byte = 0; byte < 256; ++byte) {
      const auto it = ids.find(std::string(1, static_cast<char>(byte)));
      if (it == ids.end()) {
        return errors::BadCheckpoint(path_, "", absl::StrCat("no token for byte ", byte),
                                     "one for each of the 256 bytes");
      }
      (*byte_ids)[byte] = it->second;
    }
    return absl::OkStatus();
  }

 private:
  // The value at a JSON pointer; null also for one that is not there.
  const json* Find(const std::string& pointer) const {
    const json::json_pointer at(pointer);
    return root_.contains(at) ? &root_.at(at) : nullptr;
  }

  // A value of the file, cut to a length fit for a message.
  static std::string Shown(const json* value) {
    if (value == nullptr) return "nothing";
    std::string text = value->dump(-1, ' ', false, json::error_handler_t::replace);
    if (text.size() > 300) text = absl::StrCat(text.substr(0, 300), "...");
    return text;
  }

  absl::Status Broken(absl::string_view field, const json* found, absl::string_view wanted) const {
    return errors::BadCheckpoint(path_, "", absl::StrCat(field, " ", Shown(found)), wanted);
  }

  absl::Status BrokenIf(const absl::Status& status) const {
    if (status.ok()) return status;
    return errors::BadCheckpoint(path_, "", status.message(), "one token for each id");
  }

  // FailedPrecondition unless the field is one of `allowed`; null allows that it is missing.
  absl::Status CheckField(const std::string& pointer, const std::vector<json>& allowed) const {
    const json* found = Find(pointer);
    std::string wanted;
    for (const json& value : allowed) {
      if (found == nullptr ? value.is_null() : *found == value) return absl::OkStatus();
      absl::StrAppend(&wanted, wanted.empty() ? "" : " or ", Shown(&value));
    }
    return absl::FailedPreconditionError(absl::StrCat(path_, ": ", pointer, " is ", Shown(found),
                                                      ", want ", wanted,
                                                      ": not a tokenizer of Qwen3's kind"));
  }

  absl::Status ReadAddedTokens(VocabularyBuilder* builder) const {
    const json* list = Find("/added_tokens");
    if (list == nullptr) return absl::OkStatus();
    if (!list->is_array()) return Broken("/added_tokens", list, "an array");
    for (size_t i = 0; i < list->size(); ++i) {
      const json& item = (*list)[i];
      const std::string where = absl::StrCat("/added_tokens/", i);
      const json* id = Find(where + "/id");
      const json* content = Find(where + "/content");
      const json* special = Find(where + "/special");
      if (id == nullptr || !id->is_number_unsigned() || id->get<uint64_t>() >= kMaxVocabularySize ||
          content == nullptr || !content->is_string() ||
          (special != nullptr && !special->is_boolean())) {
        return Broken(where, &item, "an object with id, content and special");
      }
      for (const char* field : {"/single_word", "/lstrip", "/rstrip", "/normalized"}) {
        RETURN_IF_ERROR(CheckField(where + field, {nullptr, false}));
      }
      RETURN_IF_ERROR(
          BrokenIf(builder->AddAdded({.content = content->get<std::string>(),
                                      .id = id->get<uint32_t>(),
                                      .special = special != nullptr && special->get<bool>()})));
    }
    return absl::OkStatus();
  }

  static bool SplitMerge(const json& item, const ByteAlphabet& alphabet, std::string* left,
                         std::string* right) {
    if (item.is_array() && item.size() == 2 && item[0].is_string() && item[1].is_string()) {
      return alphabet.Decode(item[0].get_ref<const std::string&>(), left) &&
             alphabet.Decode(item[1].get_ref<const std::string&>(), right);
    }
    if (!item.is_string()) return false;
    const std::string& text = item.get_ref<const std::string&>();
    const size_t space = text.find(' ');  // stands for no byte, so it can only separate
    return space != std::string::npos &&
           alphabet.Decode(absl::string_view(text).substr(0, space), left) &&
           alphabet.Decode(absl::string_view(text).substr(space + 1), right);
  }

  std::string path_;
  json root_;
};

absl::StatusOr<Reader> OpenTokenizerFile(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadCheckpointText(path));
  try {
    return Reader(path, json::parse(text));
  } catch (const json::exception& error) {
    return errors::BadCheckpoint(path, "", error.what(), "JSON");
  }
}

}  // namespace

absl::StatusOr<TokenizerFile> LoadTokenizerFile(const std::string& path) {
  ASSIGN_OR_RETURN(const Reader reader, OpenTokenizerFile(path));
  RETURN_IF_ERROR(reader.CheckModel());
  RETURN_IF_ERROR(reader.CheckPipeline());
  TokenizerFile file;
  TokenIds ids;
  ASSIGN_OR_RETURN(file.vocabulary, reader.ReadVocabulary(&ids));
  RETURN_IF_ERROR(reader.ReadMerges(ids, &file.merges));
  RETURN_IF_ERROR(reader.ReadByteIds(ids, &file.byte_ids));
  return file;
}

absl::StatusOr<Vocabulary> LoadVocabulary(const std::string& path) {
  ASSIGN_OR_RETURN(const Reader reader, OpenTokenizerFile(path));
  RETURN_IF_ERROR(reader.CheckModel());
  TokenIds ids;
  return reader.ReadVocabulary(&ids);
}

}  // namespace conclave
