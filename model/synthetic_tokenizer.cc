#include "model/synthetic_tokenizer.h"

#include <array>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "model/qwen3_chat_template.h"
#include "nlohmann/json.hpp"

namespace conclave {
namespace {

constexpr int kNumBytes = 256;
constexpr int kQwen3FirstAddedId = 151643;

struct AddedToken {
  const char* text;
  bool special;  // left out of decoded text
};

// Qwen3's, in the order of their ids.
constexpr std::array<AddedToken, 26> kAddedTokens = {{
    {"<|endoftext|>", true},      {"<|im_start|>", true},
    {"<|im_end|>", true},         {"<|object_ref_start|>", true},
    {"<|object_ref_end|>", true}, {"<|box_start|>", true},
    {"<|box_end|>", true},        {"<|quad_start|>", true},
    {"<|quad_end|>", true},       {"<|vision_start|>", true},
    {"<|vision_end|>", true},     {"<|vision_pad|>", true},
    {"<|image_pad|>", true},      {"<|video_pad|>", true},
    {"<tool_call>", false},       {"</tool_call>", false},
    {"<|fim_prefix|>", false},    {"<|fim_middle|>", false},
    {"<|fim_suffix|>", false},    {"<|fim_pad|>", false},
    {"<|repo_name|>", false},     {"<|file_sep|>", false},
    {"<tool_response>", false},   {"</tool_response>", false},
    {"<think>", false},           {"</think>", false},
}};

// How Qwen3 splits text before byte-pair encoding.
constexpr char kSplitPattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";

std::string Utf8Of(int code_point) {  // below 0x800
  if (code_point < 0x80) return std::string(1, static_cast<char>(code_point));
  return {static_cast<char>(0xc0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 0x3f))};
}

// The 256 byte tokens by id: GPT-2's alphabet writes a printable byte as itself and the others as
// U+0100 onwards, and lists the printable ones first.
std::vector<std::string> ByteAlphabet() {
  std::vector<std::string> printable, others;
  for (int byte = 0; byte < kNumBytes; ++byte) {
    const bool is_printable =
        (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xff && byte != 0xad);
    if (is_printable) {
      printable.push_back(Utf8Of(byte));
    } else {
      others.push_back(Utf8Of(0x100 + static_cast<int>(others.size())));
    }
  }
  printable.insert(printable.end(), others.begin(), others.end());
  return printable;
}

// `count` merges (left, right), each of two tokens that exist before it, so that merge r makes
// token 256 + r: all groups of two letters, then of three, then of four until there are enough.
// A group may start with a space (U+0120 in the alphabet).
std::vector<std::pair<std::string, std::string>> LetterMerges(int count) {
  constexpr char kLetters[] = "etaoinshrdlucmwfgypbvkjxqz";  // common ones first
  std::vector<std::string> groups = {Utf8Of(0x120)};
  for (const char* letter = kLetters; *letter != '\0'; ++letter) groups.emplace_back(1, *letter);
  std::vector<std::pair<std::string, std::string>> merges;
  while (true) {
    std::vector<std::string> longer;
    for (const std::string& group : groups) {
      for (const char* letter = kLetters; *letter != '\0'; ++letter) {
        if (static_cast<int>(merges.size()) == count) return merges;
        merges.emplace_back(group, std::string(1, *letter));
        longer.push_back(absl::StrCat(group, std::string(1, *letter)));
      }
    }
    groups = std::move(longer);
  }
}

nlohmann::json AddedTokenJson(const AddedToken& token) {
  return {{"content", token.text}, {"lstrip", false},      {"normalized", false},
          {"rstrip", false},       {"single_word", false}, {"special", token.special}};
}

std::string TokenizerJson(int first_added_id) {
  const nlohmann::json byte_level = {{"type", "ByteLevel"},
                                     {"add_prefix_space", false},
                                     {"trim_offsets", false},
                                     {"use_regex", false}};
  nlohmann::json vocab = nlohmann::json::object(), merges = nlohmann::json::array(),
                 added = nlohmann::json::array();
  int id = 0;
  for (const std::string& token : ByteAlphabet()) vocab[token] = id++;
  for (const auto& [left, right] : LetterMerges(first_added_id - kNumBytes)) {
    vocab[left + right] = id++;
    merges.push_back({left, right});
  }
  for (const AddedToken& token : kAddedTokens) {
    added.push_back(AddedTokenJson(token));
    added.back()["id"] = id++;
  }
  const nlohmann::json split = {{"type", "Split"},
                                {"pattern", {{"Regex", kSplitPattern}}},
                                {"behavior", "Isolated"},
                                {"invert", false}};
  const nlohmann::json model = {{"type", "BPE"},
                                {"dropout", nullptr},
                                {"unk_token", nullptr},
                                {"continuing_subword_prefix", ""},
                                {"end_of_word_suffix", ""},
                                {"fuse_unk", false},
                                {"byte_fallback", false},
                                {"ignore_merges", false},
                                {"vocab", std::move(vocab)},
                                {"merges", std::move(merges)}};
  const nlohmann::json json = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", std::move(added)},
      {"normalizer", {{"type", "NFC"}}},
      {"pre_tokenizer",
       {{"type", "Sequence"}, {"pretokenizers", nlohmann::json::array({split, byte_level})}}},
      {"post_processor", byte_level},
      {"decoder", byte_level},
      {"model", model}};
  return json.dump();
}

std::string TokenizerConfigJson(int first_added_id) {
  nlohmann::json decoder = nlohmann::json::object(), additional = nlohmann::json::array();
  for (size_t i = 0; i < kAddedTokens.size(); ++i) {
    decoder[absl::StrCat(first_added_id + i)] = AddedTokenJson(kAddedTokens[i]);
    if (i > 0 && kAddedTokens[i].special) additional.push_back(kAddedTokens[i].text);
  }
  const nlohmann::json json = {{"add_bos_token", false},
                               {"add_prefix_space", false},
                               {"added_tokens_decoder", std::move(decoder)},
                               {"additional_special_tokens", std::move(additional)},
                               {"bos_token", nullptr},
                               {"chat_template", std::string(kQwen3ChatTemplate)},
                               {"clean_up_tokenization_spaces", false},
                               {"eos_token", "<|im_end|>"},
                               {"errors", "replace"},
                               {"model_max_length", 131072},
                               {"pad_token", "<|endoftext|>"},
                               {"split_special_tokens", false},
                               {"tokenizer_class", "Qwen2Tokenizer"},
                               {"unk_token", nullptr}};
  return absl::StrCat(json.dump(2), "\n");
}

}  // namespace

absl::StatusOr<SyntheticTokenizer> MakeSyntheticTokenizer(int vocab_size) {
  const int num_added = static_cast<int>(kAddedTokens.size());
  if (vocab_size < kNumBytes + num_added) {
    return errors::OutOfRange("vocab_size", vocab_size,
                              absl::StrCat("at least ", kNumBytes + num_added, ": 256 bytes and ",
                                           num_added, " added tokens"));
  }
  const int first_added_id =
      vocab_size >= kQwen3FirstAddedId + num_added ? kQwen3FirstAddedId : kNumBytes;
  SyntheticTokenizer tokenizer;
  tokenizer.tokenizer_json = TokenizerJson(first_added_id);
  tokenizer.tokenizer_config_json = TokenizerConfigJson(first_added_id);
  tokenizer.endoftext_id = first_added_id;
  tokenizer.im_end_id = first_added_id + 2;
  return tokenizer;
}

}  // namespace conclave
