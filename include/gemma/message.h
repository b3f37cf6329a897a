#pragma once

#include <string>
#include <vector>

namespace gemma {

/// One turn of a conversation.
struct Message {
  std::string role;  ///< "system" (only in front), "user" or "model" (also known as "assistant")
  std::string content;
  /// Of an answer that an engine made: its ids (Result::tokens), which then stand for `content`. They are read by the
  /// kernels that made them, so that the conversation goes on exactly as if it had never been interrupted.
  std::vector<int> tokens = {};
};

}  // namespace gemma
