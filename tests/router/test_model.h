#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/check.h"
#include "model/synthetic.h"
#include "router/served_model.h"

namespace conclave {

inline constexpr int kTestContext = 32768;

// A directory of a tiny model, written once per process: ids 0..255 are the bytes (in GPT-2's
// order), 256..281 Qwen3's added tokens; a context of kTestContext.
inline const std::string& TestModelDir() {
  static const std::string* dir = [] {
    const std::filesystem::path path =
        std::filesystem::temp_directory_path() /
        absl::StrCat("conclave_router_test_", getpid(), "_", absl::ToUnixNanos(absl::Now()));
    Qwen3Config config = TinyDenseConfig();
    config.max_position_embeddings = kTestContext;
    CHECK(WriteSyntheticCheckpoint(config, path.string()).ok());
    std::atexit([] { std::filesystem::remove_all(TestModelDir()); });
    return new std::string(path.string());
  }();
  return *dir;
}

inline std::unique_ptr<ServedModel> LoadTestModel(
    const std::string& chat_template = "qwen3",
    ThinkingMode default_mode = ThinkingMode::kThinking) {
  ServedModelOptions options;
  options.model_dir = TestModelDir();
  options.model_name = "tiny";
  options.chat_template = chat_template;
  options.default_mode = default_mode;
  auto model = LoadServedModel(options);
  CHECK(model.ok()) << model.status().ToString();
  return *std::move(model);
}

inline const ServedModel& TestModel() {
  static const ServedModel* model = LoadTestModel().release();
  return *model;
}

inline std::vector<uint32_t> Encode(absl::string_view text) {
  auto ids = TestModel().tokenizer->Encode(text);
  CHECK(ids.ok()) << ids.status().ToString();
  return *std::move(ids);
}

inline uint32_t AddedId(absl::string_view content) {
  return TestModel().vocabulary().IdOfAdded(content).value();
}

}  // namespace conclave
