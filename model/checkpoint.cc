#include <algorithm>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "common/errors.h"
#include "common/status_macros.h"
#include "model/json_fields.h"
#include "model/safetensors.h"
#include "nlohmann/json.hpp"

namespace conclave {
namespace {

constexpr char kSinglePart[] = "model.safetensors";
constexpr char kIndex[] = "model.safetensors.index.json";

// tensor name -> file name of its part. DataLoss unless the index says just that, with parts that
// lie beside it.
absl::StatusOr<std::map<std::string, std::string>> ReadWeightMap(const std::string& index_path) {
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(index_path));
  const absl::StatusOr<nlohmann::json> index = ParseJsonObject(text);
  if (!index.ok()) {
    return errors::BadCheckpoint(index_path, "", index.status().message(), "a JSON object");
  }
  const auto weight_map = index->find("weight_map");
  if (weight_map == index->end() || !weight_map->is_object() || weight_map->empty()) {
    return errors::BadCheckpoint(index_path, "", "no weight_map", "an object of tensor: part");
  }
  std::map<std::string, std::string> part_names;
  for (const auto& [tensor, part] : weight_map->items()) {
    const std::string name = part.is_string() ? part.get<std::string>() : "";
    if (name.empty() || name.find('/') != std::string::npos || name[0] == '.') {
      return errors::BadCheckpoint(index_path, tensor, part.dump(),
                                   "the name of a file in the same directory");
    }
    part_names[tensor] = name;
  }
  return part_names;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& model_dir) {
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint(model_dir));
  absl::Status status = checkpoint->OpenSinglePart(absl::StrCat(model_dir, "/", kSinglePart));
  if (absl::IsNotFound(status)) {
    status = checkpoint->OpenIndexedParts(absl::StrCat(model_dir, "/", kIndex));
  }
  if (absl::IsNotFound(status)) {
    return absl::NotFoundError(
        absl::StrCat(model_dir, " holds neither ", kSinglePart, " nor ", kIndex));
  }
  RETURN_IF_ERROR(status);
  for (const auto& [name, part] : checkpoint->part_of_) {
    checkpoint->names_.push_back(name);
    checkpoint->total_bytes_ += part->Find(name)->bytes;
  }
  return checkpoint;
}

absl::Status Checkpoint::OpenSinglePart(const std::string& path) {
  ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> part, SafetensorsFile::Open(path));
  for (const auto& [name, view] : part->tensors()) part_of_[name] = part.get();
  parts_.push_back(std::move(part));
  return absl::OkStatus();
}

absl::Status Checkpoint::OpenIndexedParts(const std::string& index_path) {
  ASSIGN_OR_RETURN(const auto part_names, ReadWeightMap(index_path));
  std::map<std::string, const SafetensorsFile*> opened;
  for (const auto& [tensor, part_name] : part_names) {
    const SafetensorsFile*& part = opened[part_name];
    if (part == nullptr) {
      const std::string path = absl::StrCat(model_dir_, "/", part_name);
      absl::StatusOr<std::unique_ptr<SafetensorsFile>> file = SafetensorsFile::Open(path);
      if (absl::IsNotFound(file.status())) {
        return errors::BadCheckpoint(path, tensor, "no such part",
                                     absl::StrCat("the part that ", index_path, " names"));
      }
      RETURN_IF_ERROR(file.status());
      part = file->get();
      parts_.push_back(*std::move(file));
    }
    if (part->Find(tensor) == nullptr) {
      return errors::BadCheckpoint(part->path(), tensor, "no such tensor in the part",
                                   absl::StrCat("it, as ", index_path, " says"));
    }
    part_of_[tensor] = part;
  }
  return absl::OkStatus();
}

absl::StatusOr<TensorView> Checkpoint::Find(absl::string_view name) const {
  const auto it = part_of_.find(name);
  if (it != part_of_.end()) return *it->second->Find(name);
  return errors::BadCheckpoint(model_dir_, name, "no such tensor", "one");
}

bool Checkpoint::Contains(absl::string_view name) const {
  return part_of_.find(name) != part_of_.end();
}

const std::string& Checkpoint::PartOf(absl::string_view name) const {
  const auto it = part_of_.find(name);
  return it == part_of_.end() ? model_dir_ : it->second->path();
}

}  // namespace conclave
