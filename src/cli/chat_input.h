#pragma once

#include <memory>
#include <string>

namespace gemma::cli {

/// Where the messages and commands of a chat come from.
class ChatInput {
 public:
  enum class End {
    kText,
    kInterrupt,  ///< Ctrl-C where there was nothing to take back
    kEndOfFile,
  };
  struct Entry {
    End end = End::kText;
    std::string text;        ///< not yet checked to be valid UTF-8
    std::string where;       ///< "line 3: " to stand before an error; empty where that is plain to see
    std::string error = {};  ///< why the entry cannot be used; `text` is empty then
  };

  virtual ~ChatInput() = default;

  /// The next message or command.
  virtual Entry next() = 0;

  virtual bool is_interactive() const = 0;  ///< somebody sits in front of it
};

/// A person who edits lines where standard input and at least one output are a terminal; else one entry a line.
std::unique_ptr<ChatInput> open_chat_input();

}  // namespace gemma::cli
