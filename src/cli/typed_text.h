#pragma once

#include <optional>
#include <string>

namespace gemma::cli {

/// Puts together a text that is typed on several lines: a line that ends in a backslash goes on in the next one, and
/// what begins with """ (or does so after a command) ends with """.
class TypedText {
 public:
  /// @return the text if it is complete with this line.
  std::optional<std::string> push(const std::string& line);

  bool is_open() const { return is_open_; }  ///< more lines are to come
  void clear();

 private:
  std::string text_;
  bool is_open_ = false;
  bool is_block_ = false;
};

/// What a text asks for.
struct Wish {
  std::string command;  ///< "save" for "/save FILE"; empty: a message for the model
  std::string text;     ///< the message, or what follows the command's name, without white space around it
};

/// "/name ..." is a command, "//..." on one line a message that begins with a slash. All else is a message as it
/// stands: paths such as "/usr/bin", and pasted code that begins with a comment.
/// @param text  valid UTF-8.
Wish understand(const std::string& text);

/// A path with "~" or "~/" in front replaced by the home folder, as a shell does it.
std::string expand_home(const std::string& path);

}  // namespace gemma::cli
