// How fast the tokenizer encodes, one thread: MB/s and tokens/s, best and median of several passes.
// Time is the thread's CPU time, so that a busy machine disturbs it little.
//
// Texts: "multilingual", the texts of the reference vectors; "code", this repository's sources;
// and any files given. Each is repeated up to --megabytes and cut into chunks of --chunk_bytes at
// character boundaries. --write_texts=DIR leaves them there for tools/bench_hf_tokenizer.py.
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "text/json_text.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

namespace conclave {
namespace {

struct Options {
  std::string model_dir = std::string(CONCLAVE_TEXT_DATA_DIR) + "/qwen3";
  std::string source_dir = CONCLAVE_BENCH_SOURCE_DIR;
  std::string write_texts;
  std::vector<std::string> files;
  double megabytes = 10;
  size_t chunk_bytes = 8192;
  int passes = 5;
};

double ThreadSeconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

std::string ReadFile(const std::filesystem::path& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

std::string MultilingualText() {
  std::string text;
  std::ifstream file(std::string(CONCLAVE_TEXT_DATA_DIR) + "/golden/golden_dev.jsonl");
  for (std::string line; std::getline(file, line);) {
    const absl::StatusOr<JsonValue> record = ParseJson(line);
    if (!record.ok()) continue;
    const std::string& source = record->Find("source")->string_value();
    if (source.rfind("udhr", 0) == 0) text += record->Find("text")->string_value() + "\n";
  }
  return text;
}

std::string SourceCode(const std::filesystem::path& root) {
  std::vector<std::filesystem::path> paths;
  for (const char* folder : {"common", "text", "client", "router", "worker", "kernels", "tests"}) {
    if (!std::filesystem::exists(root / folder)) continue;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(root / folder)) {
      const std::string extension = entry.path().extension().string();
      const bool is_table = entry.path().filename() == "unicode_tables.cc";
      if ((extension == ".cc" || extension == ".h" || extension == ".py") && !is_table) {
        paths.push_back(entry.path());
      }
    }
  }
  std::sort(paths.begin(), paths.end());
  std::string text;
  for (const std::filesystem::path& path : paths) text += ReadFile(path);
  return text;
}

// At most chunk_bytes each, cut between characters.
std::vector<absl::string_view> Chunks(absl::string_view text, size_t chunk_bytes) {
  std::vector<absl::string_view> chunks;
  while (!text.empty()) {
    const size_t size = ValidUtf8Prefix(text.substr(0, chunk_bytes));
    chunks.push_back(text.substr(0, size));
    text.remove_prefix(size);
  }
  return chunks;
}

void Measure(const Tokenizer& tokenizer, const Options& options, const std::string& name,
             const std::string& source) {
  if (source.empty() || ValidUtf8Prefix(source) != source.size()) {
    std::cerr << name << ": empty or not UTF-8, passed over\n";
    return;
  }
  const size_t wanted_bytes = static_cast<size_t>(options.megabytes * 1e6);
  std::string text = source;
  while (text.size() < wanted_bytes) text += source;
  text.resize(ValidUtf8Prefix(absl::string_view(text).substr(0, wanted_bytes)));
  if (!options.write_texts.empty()) {
    std::ofstream(std::filesystem::path(options.write_texts) / (name + ".txt")) << text;
  }
  std::vector<double> seconds;
  size_t num_tokens = 0;
  for (int pass = 0; pass < options.passes; ++pass) {
    num_tokens = 0;
    const double begin = ThreadSeconds();
    for (const absl::string_view chunk : Chunks(text, options.chunk_bytes)) {
      num_tokens += tokenizer.Encode(chunk)->size();
    }
    seconds.push_back(ThreadSeconds() - begin);
  }
  std::sort(seconds.begin(), seconds.end());
  const double best = seconds.front(), median = seconds[seconds.size() / 2];
  const double megabytes = static_cast<double>(text.size()) / 1e6;
  std::printf("%-14s %6.1f MB %9zu tokens  best %6.1f MB/s %6.2f Mtok/s  median %6.1f MB/s\n",
              name.c_str(), megabytes, num_tokens, megabytes / best,
              static_cast<double>(num_tokens) / 1e6 / best, megabytes / median);
}

int Run(const Options& options) {
  const double begin = ThreadSeconds();
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(options.model_dir);
  const double load_seconds = ThreadSeconds() - begin;
  if (!tokenizer.ok()) {
    std::cerr << tokenizer.status() << "\n";
    return 1;
  }
  std::printf("loaded in %.2f s\n", load_seconds);
  Measure(**tokenizer, options, "multilingual", MultilingualText());
  Measure(**tokenizer, options, "code", SourceCode(options.source_dir));
  for (const std::string& file : options.files) {
    Measure(**tokenizer, options, std::filesystem::path(file).stem().string(), ReadFile(file));
  }
  return 0;
}

}  // namespace
}  // namespace conclave

int main(int argc, char** argv) {
  conclave::Options options;
  CLI::App app("Measures the tokenizer on one thread");
  app.add_option("--model", options.model_dir, "folder with tokenizer.json");
  app.add_option("--source_dir", options.source_dir, "repository whose code is a text");
  app.add_option("--megabytes", options.megabytes, "size of each text");
  app.add_option("--chunk_bytes", options.chunk_bytes, "bytes of one call")
      ->check(CLI::Range(size_t{16}, size_t{1} << 30));
  app.add_option("--passes", options.passes)->check(CLI::Range(1, 1000));
  app.add_option("--write_texts", options.write_texts, "folder to leave the texts in");
  app.add_option("files", options.files, "more texts");
  CLI11_PARSE(app, argc, argv);
  return conclave::Run(options);
}
