#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "model/model.h"

namespace gemma {

/// Reads a JSON file of a Hugging Face directory.
/// @throws Error if it is missing, too large for its kind, or not a JSON object.
nlohmann::json read_json_file(const std::filesystem::path& path);

/// Hyper-parameters from a `config.json`, in the spelling of Google's repositories (`rope_theta`, no `layer_types`) or
/// in that of transformers 5 (`rope_parameters`, `layer_types`).
/// @param where  begins the message of an error, for example "'gemma-2-2b/config.json'".
/// @throws Error if it is of another model, uses a feature that Gemma 2 does not have, or lacks a member.
Config config_from_hf(const nlohmann::json& json, const std::string& where);

/// Stop ids, sampling defaults and whether the model is instruction-tuned, from what a Hugging Face directory has of
/// `generation_config.json`, `tokenizer_config.json` and `chat_template.jinja`.
/// @param config_json  the contents of its config.json, whose eos_token_id counts where the others have none.
GenerationDefaults read_generation_defaults(const std::filesystem::path& directory, const nlohmann::json& config_json);

}  // namespace gemma
