#include "model/hf_checkpoint.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "gemma/error.h"
#include "model/hf_config.h"
#include "model/mapped_file.h"
#include "model/quote.h"

namespace gemma {
namespace {

// A clone without Git LFS has small text files in place of the weights.
void refuse_lfs_pointer(const InputFile& file) {
  if (file.starts_with("version https://git-lfs")) {
    throw Error(in_quotes(file.name()) + " is not the weights but a pointer to them. Fetch them with: git lfs pull");
  }
}

SafetensorsHeader read_header(const std::filesystem::path& path) {
  const MappedFile mapped(path);
  return SafetensorsHeader::parse(mapped.bytes(), mapped.bytes().size(), path.string());
}

// The shards that an index names and the tensors that it says each has.
std::map<std::string, std::set<std::string>> read_index(const std::filesystem::path& path) {
  const nlohmann::json json = read_json_file(path);
  const std::string where = in_quotes(path.native());
  const auto map = json.find("weight_map");
  if (map == json.end() || !map->is_object()) throw Error(where + " has no weight_map");
  std::map<std::string, std::set<std::string>> shards;
  for (const auto& [tensor, shard] : map->items()) {
    if (!shard.is_string()) throw Error(where + " does not name a file for tensor " + in_quotes(tensor));
    const std::string name = shard.get<std::string>();
    // A shard lies beside its index; anything else could point anywhere on this machine.
    if (name.empty() || name.starts_with('.') || name.find('/') != std::string::npos) {
      throw Error(where + " names a shard " + in_quotes(name) + ", which is not a plain file name");
    }
    shards[name].insert(tensor);
  }
  return shards;
}

}  // namespace

HfCheckpoint::HfCheckpoint(const std::filesystem::path& directory) {
  const std::filesystem::path single = directory / "model.safetensors";
  const std::filesystem::path index = directory / "model.safetensors.index.json";
  if (std::filesystem::exists(single)) {
    add_file(single);
    return;
  }
  if (!std::filesystem::exists(index)) {
    throw Error(in_quotes(directory.native()) + " has neither model.safetensors nor model.safetensors.index.json. " +
                (std::filesystem::exists(directory / "adapter_model.safetensors")
                     ? "It holds a LoRA adapter: merge that into its base model first."
                     : "Download all files of the model."));
  }

  const std::map<std::string, std::set<std::string>> shards = read_index(index);
  for (const auto& [shard, names] : shards) {
    if (!std::filesystem::exists(directory / shard)) {
      throw Error(in_quotes((directory / shard).native()) + " is missing, but " + in_quotes(index.filename().native()) +
                  " names it. Download it into the same directory.");
    }
    add_file(directory / shard);
  }
  for (const auto& [shard, names] : shards) {
    const std::string path = (directory / shard).string();
    for (const std::string& name : names) {
      const auto found = tensors_.find(name);
      if (found == tensors_.end() || found->second.file->name() != path) {
        throw Error(in_quotes(path) + " has no tensor " + in_quotes(name) + ", but " +
                    in_quotes(index.filename().native()) + " says so");
      }
    }
  }
  for (const auto& [name, tensor] : tensors_) {
    const std::string shard = std::filesystem::path(tensor.file->name()).filename().string();
    if (!shards.at(shard).contains(name)) {
      throw Error(in_quotes(tensor.file->name()) + " has a tensor " + in_quotes(name) + " that " +
                  in_quotes(index.filename().native()) + " does not name");
    }
  }
}

void HfCheckpoint::add_file(const std::filesystem::path& path) {
  const auto file = std::make_shared<const InputFile>(path);
  refuse_lfs_pointer(*file);
  SafetensorsHeader header = read_header(path);
  for (TensorInfo& info : header.tensors) {
    const std::string name = info.name;
    const auto [place, is_new] = tensors_.try_emplace(name, HfTensor{std::move(info), file});
    if (!is_new) {
      throw Error("tensor " + in_quotes(name) + " is both in " + in_quotes(place->second.file->name()) + " and in " +
                  in_quotes(file->name()));
    }
  }
  files_.push_back(path);
}

}  // namespace gemma
