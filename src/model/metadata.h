#pragma once

#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "model/model.h"

namespace gemma {

/// What a .gemma file says about itself besides its tensors: the JSON text `gemma` in the metadata of its header.
struct Metadata {
  Config config;
  GenerationDefaults defaults;
  WeightTypes types;
  std::map<std::string, std::string> hashes;  ///< tensor -> 32 digits of XXH3 over its bytes
};

std::string to_json(const Metadata& metadata);

/// @throws Error if the text is not what to_json makes, has another version, or holds values out of range.
Metadata parse_metadata(const std::string& text);

/// The hyper-parameters under the names that Hugging Face gives them.
nlohmann::json config_to_json(const Config& config);

/// The opposite of config_to_json; every member must be there, though the soft caps may be null.
/// @param where  begins the message of an error, for example "config.json".
/// @throws Error if a member is absent, has the wrong type, or makes no sense.
Config config_from_json(const nlohmann::json& json, const std::string& where);

/// @throws Error if the defaults make no sense for this model.
void validate(const GenerationDefaults& defaults, const Config& config);

}  // namespace gemma
