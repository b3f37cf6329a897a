// Three stories at once. Each step of the model takes all of them one token further, which a GPU does as fast as one
// alone; none of them changes by it. Sentences are printed as they are completed.
#include <exception>
#include <iostream>
#include <string>
#include <string_view>
#include <utility>

#include "gemma/engine.h"

namespace {

/// Prints what is complete of a text that comes in pieces, a line a sentence.
class Sentences {
 public:
  Sentences(int story, std::string beginning) : story_(story), text_(std::move(beginning)) {}

  void add(std::string_view piece) {
    text_ += piece;
    for (std::size_t end; (end = text_.find_first_of(".!?\n")) != std::string::npos; text_.erase(0, end + 1)) {
      const std::size_t first = text_.find_first_not_of(" \"\n");
      if (first < end) std::cout << story_ << ": " << text_.substr(first, end + 1 - first) << std::endl;
    }
  }

 private:
  int story_;
  std::string text_;
};

void tell_stories() {
  gemma::EngineOptions options;  // .model names a file; without one: the built-in demo model
  options.sequences = 3;         // requests that are worked on at once; more may be submitted, and wait
  gemma::Engine engine(options);

  int story = 0;
  for (const char* beginning : {"Once upon a time, a cat", "Tom had a red ball", "One day, it began to rain"}) {
    gemma::Request request;
    request.prompt = beginning;
    request.options.max_tokens = 120;
    request.options.seed = 1;  // the same stories in every run, whatever else the engine is working on

    gemma::Callbacks callbacks;
    callbacks.on_text = [sentences = Sentences(++story, beginning)](std::string_view text) mutable {
      sentences.add(text);
      return true;  // false would end this story, and leave the others alone
    };
    callbacks.on_done = [story](const gemma::Result& result) {
      std::cout << "(story " << story << " ends after " << result.tokens.size() << " tokens)" << std::endl;
    };
    engine.submit(request, std::move(callbacks));
  }
  engine.run();  // calls back until all three are done; Engine::step() makes one step at a time
}

}  // namespace

int main() {
  try {
    tell_stories();
  } catch (const std::exception& error) {  // gemma::Error says what to do about it
    std::cerr << error.what() << '\n';
    return 1;
  }
}
