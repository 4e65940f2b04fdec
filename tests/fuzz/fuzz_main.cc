// Runs a fuzz target where libFuzzer is not to be had: first the committed inputs, then, for some
// seconds, random changes to them. The seed is fixed, so that what was found is found again.
//
// Usage: fuzz_<target> CORPUS_DIR SECONDS [SEED]
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

constexpr size_t kMaxInputBytes = 4096;  // as run.sh tells libFuzzer

const std::string* current_input = nullptr;

// The input that broke it, as escapes that printf(1) understands.
void PrintInput(int signal) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string line = "\nthe input: printf '";
  for (const char c : *current_input) {
    const auto byte = static_cast<unsigned char>(c);
    line += {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
  }
  line += "'\n";
  if (write(STDERR_FILENO, line.data(), line.size()) < 0) _exit(1);
  ::signal(signal, SIG_DFL);
  raise(signal);
}

void RunOne(const std::string& input) {
  current_input = &input;
  // A buffer of the exact size, so that AddressSanitizer sees a read behind it.
  const std::vector<uint8_t> bytes(input.begin(), input.end());
  LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
}

std::vector<std::string> ReadCorpus(const std::string& directory) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<std::string> inputs;
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    inputs.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return inputs;
}

class Mutator {
 public:
  Mutator(std::vector<std::string> corpus, uint32_t seed)
      : corpus_(std::move(corpus)), random_(seed) {}

  std::string Next() {
    std::string input = corpus_[Below(corpus_.size())];
    for (size_t edits = 1 + Below(6); edits > 0; --edits) Edit(&input);
    if (input.size() > kMaxInputBytes) input.resize(kMaxInputBytes);
    return input;
  }

 private:
  size_t Below(size_t bound) { return bound == 0 ? 0 : random_() % bound; }

  // Some consecutive bytes, 16 at most.
  std::string Piece(const std::string& from) {
    return from.substr(Below(from.size()), 1 + Below(16));
  }

  void Edit(std::string* input) {
    const size_t at = Below(input->size() + 1);
    switch (Below(8)) {
      case 0:
        input->resize(at);
        break;
      case 1:
        input->erase(at, 1 + Below(16));
        break;
      case 2:
        input->insert(at, 1 + Below(3), static_cast<char>(random_()));
        break;
      case 3:
        input->insert(at, Piece(*input));
        break;
      case 4:
      case 5:
        input->insert(at, Piece(corpus_[Below(corpus_.size())]));
        break;
      case 6:
        if (at < input->size()) (*input)[at] ^= static_cast<char>(1 << Below(8));
        break;
      default:
        if (at < input->size()) (*input)[at] = static_cast<char>(random_());
    }
  }

  const std::vector<std::string> corpus_;
  std::mt19937 random_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: " << argv[0] << " CORPUS_DIR SECONDS [SEED]\n";
    return 2;
  }
  signal(SIGABRT, PrintInput);
  std::vector<std::string> corpus = ReadCorpus(argv[1]);
  corpus.emplace_back();
  for (const std::string& input : corpus) RunOne(input);
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoi(argv[2]));
  const uint32_t seed = argc > 3 ? static_cast<uint32_t>(std::atoi(argv[3])) : 1;
  Mutator mutator(corpus, seed);
  size_t rounds = 0;
  for (; std::chrono::steady_clock::now() < end; ++rounds) RunOne(mutator.Next());
  std::cout << corpus.size() << " inputs and " << rounds << " changed ones, seed " << seed << "\n";
  return 0;
}
