#pragma once

#include <string>

#include "cli/conversation.h"
#include "gemma/tokenizer.h"

namespace gemma::cli {

/// Writes a conversation with the ids of its answers as JSON:
/// {"format": "gemma-run chat 1", "model", "system", "dropped", "messages": [{"role", "content", "tokens"}, ...]}.
/// @param model  the name of the model that answered.
/// @throws gemma::Error if the file cannot be written; what stood there before is then still there.
void save_conversation(const Conversation& conversation, const std::string& model, const std::string& path);

/// Reads what save_conversation has written, or somebody by hand: "system", "dropped" and "tokens" may be missing, and
/// the model's role may be "assistant". Ids that do not spell their answer, since another tokenizer made them, are left
/// out.
/// @throws gemma::Error if the file cannot be read, or is not a conversation that ends with an answer.
Conversation load_conversation(const std::string& path, const Tokenizer& tokenizer);

}  // namespace gemma::cli
