// The public interface on the demo model, as it is built in and in bf16: a request's result depends on nothing but the
// request.
#include "gemma/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <filesystem>
#include <map>
#include <memory>
#include <ostream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "device/device.h"
#include "model/model_file.h"
#include "model/model_writer.h"
#include "support/small_model.h"
#include "support/temporary_directory.h"

namespace gemma {

namespace {

struct Tested {
  std::string name;
  std::string device;
  std::filesystem::path model;  ///< empty: the one that is built in, in q8
};

std::vector<Tested> tested() {
  std::vector<std::string> devices = {"cpu"};
  if (has_cuda_device()) devices.emplace_back("cuda");
  std::vector<Tested> all;
  for (const std::string& device : devices) {
    all.push_back({device + "_q8", device, {}});
    all.push_back({device + "_bf16", device, GEMMA_SOURCE_DIR "/tests/golden/demo-bf16.gemma"});
  }
  return all;
}

void PrintTo(const Tested& tested, std::ostream* out) { *out << tested.name; }

class EngineTest : public ::testing::TestWithParam<Tested> {
 protected:
  static EngineOptions options(int sequences = 1, int chunk = 0) {
    EngineOptions options;
    options.model = GetParam().model;
    options.device = GetParam().device;
    options.threads = 1;  // the tests run beside each other
    options.context = 512;
    options.sequences = sequences;
    options.chunk = chunk;
    return options;
  }
};

INSTANTIATE_TEST_SUITE_P(On, EngineTest, ::testing::ValuesIn(tested()),
                         [](const auto& param_info) { return param_info.param.name; });

constexpr std::string_view kWords[] = {"Once upon a time", " there was",      " a little girl", " named Lily.",
                                       " She had",         " a big red ball", " and",           " a dog.",
                                       " One day,",        " they went"};

/// Requests of all kinds: short and long prompts, greedy and drawn, with stop texts, penalty and log-probabilities.
std::vector<Request> mixed_requests(int count) {
  std::vector<Request> requests;
  for (int i = 0; i < count; ++i) {
    Request request;
    for (int word = 0; word <= (i % 13 == 4 ? 20 : i % 4); ++word) request.prompt += kWords[(i + word) % 10];
    GenerationOptions& options = request.options;
    options.max_tokens = 1 + (i * 5) % 8;
    options.seed = 1000 + i;
    options.ignore_eos = i % 4 == 0;
    if (i % 3 == 0) options.temperature = 0;
    if (i % 3 == 1) options.top_k = 10;
    if (i % 5 == 0) options.logprobs = 3;
    if (i % 5 == 2) options.repeat_penalty = 1.3f;
    if (i % 6 == 3) options.stop = {" the", "."};
    if (i % 7 == 6) options.chat = true;
    requests.push_back(std::move(request));
  }
  return requests;
}

/// All that a result says of the answer, to the last bit.
std::string essence(const Result& result) {
  std::string all = result.text + '|' + std::to_string(result.prompt_tokens) + '|' +
                    std::to_string(static_cast<int>(result.finish_reason)) + '|' + std::to_string(result.seed);
  const auto bits = [](double value) { return std::to_string(std::bit_cast<std::uint64_t>(value)); };
  for (int token : result.tokens) all += ' ' + std::to_string(token);
  for (const StepLogprobs& step : result.logprobs) {
    all += " / " + std::to_string(step.token) + ' ' + bits(step.logprob);
    for (const auto& [token, logprob] : step.top) all += ' ' + std::to_string(token) + ' ' + bits(logprob);
  }
  return all;
}

std::vector<Result> run_together(Engine& engine, const std::vector<Request>& requests) {
  std::vector<Result> results(requests.size());
  std::size_t done = 0;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    engine.submit(requests[i], {.on_done = [&results, &done, i](Result result) {
                    results[i] = std::move(result);
                    ++done;
                  }});
  }
  engine.run();
  EXPECT_EQ(done, requests.size());
  return results;
}

Request with_tokens(std::vector<int> tokens, int max_tokens = 5) {
  Request request;
  request.tokens = std::move(tokens);
  request.options.max_tokens = max_tokens;
  request.options.seed = 1;
  return request;
}

TEST_P(EngineTest, GivesARequestTheSameResultAloneAndAmongOthers) {
  const std::vector<Request> requests = mixed_requests(40);
  std::vector<std::string> expected;
  Engine alone(options());
  for (const Request& request : requests) expected.push_back(essence(alone.generate(request)));
  const std::pair<int, int> sequences_and_chunks[] = {{1, 7}, {3, 1}, {3, 512}, {8, 7}};
  for (const auto& [sequences, chunk] : sequences_and_chunks) {
    Engine engine(options(sequences, chunk));
    EXPECT_EQ(engine.info().sequences, sequences);
    const std::vector<Result> results = run_together(engine, requests);
    for (std::size_t i = 0; i < requests.size(); ++i) {
      EXPECT_EQ(essence(results[i]), expected[i])
          << "request " << i << " among " << sequences << " at once, in chunks of " << chunk;
    }
  }
}

/// A model with random weights and the demo model's tokenizer, so small that hundreds of requests take a second.
Model tiny_model() {
  Config config = small_config(/*width_multiple=*/64);
  config.layers = alternating_layers(4);
  config.vocab_size = load_demo_model().config.vocab_size;
  config.window = 40;
  Model model = random_model(config, 3);
  model.tokenizer = load_demo_model().tokenizer;  // in the program itself, which outlives every model
  return model;
}

TEST_P(EngineTest, GivesAHundredRequestsTheSameResultsAloneTogetherAndInOtherChunks) {
  const TemporaryDirectory directory;
  EngineOptions tiny = options();
  tiny.model = directory / "tiny.gemma";
  save_model(tiny_model(), tiny.model);
  std::vector<Request> requests = mixed_requests(100);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    // Half of them follow one of two instructions, some are long enough for the window to move on.
    std::string instruction;
    for (std::size_t word = 0; word < (i % 4 < 2 ? 40 : i % 11 == 3 ? 60 : 0); ++word)
      instruction += kWords[(word * word + i % 4) % 10];
    requests[i].prompt = instruction + requests[i].prompt;
    requests[i].options.max_tokens = 1 + static_cast<int>(i * 7) % 24;
  }
  std::vector<std::string> expected;
  Engine alone(tiny);
  for (const Request& request : requests) expected.push_back(essence(alone.generate(request)));
  const std::pair<int, int> sequences_and_chunks[] = {{40, 0}, {40, 13}, {100, 0}, {100, 64}};
  for (const auto& [sequences, chunk] : sequences_and_chunks) {
    tiny.sequences = sequences;
    tiny.chunk = chunk;
    Engine engine(tiny);
    EXPECT_EQ(engine.info().sequences, sequences);
    const std::vector<Result> results = run_together(engine, requests);
    int cached = 0;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      EXPECT_EQ(essence(results[i]), expected[i])
          << "request " << i << " among " << sequences << " at once, in chunks of " << chunk;
      cached += results[i].cached_tokens > 0 ? 1 : 0;
    }
    EXPECT_GE(cached, 40) << "those behind an instruction";
  }
}

/// Prompts behind long instructions that take turns.
std::vector<Request> instructed_requests(int instructions, int count) {
  std::vector<Request> requests;
  for (int i = 0; i < count; ++i) {
    Request request;
    for (int word = 0; word < 30; ++word) request.prompt += kWords[(word * word + 3 + i % instructions) % 10];
    for (int word = 0; word < 4; ++word) request.prompt += kWords[(i + word * word) % 10];
    request.options = {.max_tokens = 8, .seed = 7, .logprobs = 2};
    requests.push_back(request);
  }
  return requests;
}

TEST_P(EngineTest, ReadsEachSharedPrefixOnceAndChangesNoAnswerByIt) {
  Engine alone(options());
  for (const int instructions : {1, 2, 3}) {
    const std::vector<Request> requests = instructed_requests(instructions, 9);
    std::vector<Result> expected;
    for (const Request& request : requests) expected.push_back(alone.generate(request));
    for (const int sequences : {1, 4}) {
      EngineOptions sharing = options(sequences);
      sharing.prefixes = 3;
      Engine together(sharing);
      const std::vector<Result> results = run_together(together, requests);
      for (std::size_t i = 0; i < requests.size(); ++i) {
        EXPECT_EQ(essence(results[i]), essence(expected[i]));
        EXPECT_EQ(expected[i].cached_tokens, 0);
        const bool is_first = i < static_cast<std::size_t>(instructions);
        EXPECT_TRUE(is_first ? results[i].cached_tokens == 0 : results[i].cached_tokens >= 64)
            << "request " << i << ", " << sequences << " at once: " << results[i].cached_tokens;
        EXPECT_EQ(results[i].timing.prompt_tokens, results[i].prompt_tokens - results[i].cached_tokens);
      }
    }
  }
}

TEST_P(EngineTest, KeepsNoPrefixesForOneRequestAtOnceUnlessAsked) {
  const std::vector<Request> requests = instructed_requests(1, 3);
  Engine engine(options());
  for (const Result& result : run_together(engine, requests)) EXPECT_EQ(result.cached_tokens, 0);
  EngineOptions none = options(2);
  none.prefixes = 0;
  Engine without(none);
  for (const Result& result : run_together(without, requests)) EXPECT_EQ(result.cached_tokens, 0);
  none.prefixes = -1;
  EXPECT_THROW(Engine{none}, Error);
}

TEST_P(EngineTest, GoesOnInASessionAsInAConversationRebuiltFromItsMessages) {
  EngineOptions narrow = options(2);
  narrow.window = 16;  // so that the ring goes round
  Engine engine(narrow);
  const Session session = engine.open_session();
  std::vector<Message> messages;
  std::vector<int> known = {0};  // tokens of the conversation after each turn
  const auto ask = [&](std::uint64_t seed) {
    Request request;
    request.messages = messages;
    request.options = {.max_tokens = 20, .seed = seed, .ignore_eos = true, .logprobs = 2};
    request.session = session;
    Result result = engine.generate(request);
    const Session afresh = engine.open_session();
    request.session = afresh;
    const Result rebuilt = engine.generate(request);
    engine.close_session(afresh);
    EXPECT_EQ(essence(result), essence(rebuilt));
    EXPECT_EQ(rebuilt.cached_tokens, 0);
    return result;
  };
  const auto answered = [&](const Result& result) {
    messages.push_back({.role = "model", .content = result.text, .tokens = result.tokens});
    known.push_back(result.prompt_tokens + static_cast<int>(result.tokens.size()) - 1);
  };

  for (int turn = 0; turn < 4; ++turn) {
    std::string question;
    for (int word = 0; word < 5; ++word) question += kWords[(turn * 3 + word) % 10];
    messages.push_back({.role = "user", .content = question});
    EXPECT_GE(ask(1).cached_tokens, known.back()) << "turn " << turn;
    const Result retried = ask(2);
    EXPECT_EQ(retried.cached_tokens, retried.prompt_tokens - 1) << "turn " << turn;
    answered(retried);
  }
  // Two turns are taken back, and the conversation takes another way.
  messages.resize(4);
  messages.push_back({.role = "user", .content = "Tell me about the red ball."});
  EXPECT_GE(ask(3).cached_tokens, known[2]);
}

TEST_P(EngineTest, RefusesWhatItCannotDo) {
  Engine engine(options());
  EXPECT_THROW(engine.generate(with_tokens(std::vector<int>(512, 5))), Error) << "no room for a new token";
  EXPECT_THROW(engine.generate(with_tokens({-1})), Error);
  EXPECT_THROW(engine.generate(with_tokens({2, 1 << 20})), Error);
  EXPECT_THROW(engine.generate(with_tokens({2}, -1)), Error);
  Request with_empty_stop = with_tokens({2});
  with_empty_stop.options.stop = {""};
  EXPECT_THROW(engine.generate(with_empty_stop), Error);
  Request with_no_session = with_tokens({2});
  with_no_session.session = Session{0};
  EXPECT_THROW(engine.generate(with_no_session), Error);
  EXPECT_THROW(engine.close_session(Session{0}), Error);
  EXPECT_EQ(engine.generate(with_tokens(std::vector<int>(511, 5))).tokens.size(), 1u) << "and goes on all the same";

  Request in_session = with_tokens({2, 3, 4});
  in_session.session = engine.open_session();
  EXPECT_THROW(engine.generate(with_tokens({2})), Error) << "the session has taken the only place";
  EXPECT_THROW(engine.open_session(), Error);
  engine.submit(in_session, {});
  EXPECT_THROW(engine.submit(in_session, {}), Error) << "the session is busy";
  EXPECT_THROW(engine.close_session(*in_session.session), Error);
  engine.run();
  engine.close_session(*in_session.session);
  EXPECT_NO_THROW(engine.generate(with_tokens({2})));
}

TEST_P(EngineTest, MakesNoTokensWhenNoneAreWanted) {
  Engine engine(options());
  const Result result = engine.generate(with_tokens({2, 3, 4}, 0));
  EXPECT_EQ(result.prompt_tokens, 3);
  EXPECT_TRUE(result.tokens.empty());
  EXPECT_EQ(result.text, "");
  EXPECT_EQ(result.finish_reason, FinishReason::kLength);

  // One callback's error costs no other request its result.
  int done = 0;
  const auto first =
      engine.submit(with_tokens({2}, 0), {.on_done = [](const Result&) { throw std::runtime_error("mine"); }});
  const auto second = engine.submit(with_tokens({2}, 0), {.on_done = [&](const Result&) { ++done; }});
  EXPECT_NE(first, second);
  EXPECT_THROW(engine.run(), std::runtime_error);
  engine.run();
  EXPECT_EQ(done, 1);
}

TEST_P(EngineTest, SaysWhoIsDoneInTheOrderInWhichTheyAreDone) {
  Engine engine(options(3));
  std::vector<int> done;
  std::map<int, std::string> streamed;
  std::map<int, Result> results;
  for (const int tokens : {12, 3, 7}) {
    Request request = with_tokens({2, 40, 50}, tokens);
    request.options.ignore_eos = true;
    Callbacks callbacks;
    callbacks.on_text = [&streamed, tokens](std::string_view text) { return streamed[tokens] += text, true; };
    callbacks.on_done = [&, tokens](Result result) {
      done.push_back(tokens);
      results[tokens] = std::move(result);
    };
    engine.submit(request, callbacks);
  }
  engine.run();
  EXPECT_EQ(done, (std::vector<int>{3, 7, 12}));
  for (const auto& [tokens, result] : results) {
    EXPECT_EQ(static_cast<int>(result.tokens.size()), tokens);
    EXPECT_EQ(result.text, streamed[tokens]);
  }
}

TEST_P(EngineTest, EndsACancelledRequestWithWhatItHas) {
  Engine engine(options(2));
  Request request = with_tokens({2, 40, 50}, 20);
  request.options.ignore_eos = true;
  const Result whole = engine.generate(request);
  Result cancelled, other;
  RequestId id{};
  int tokens = 0;
  Callbacks callbacks;
  callbacks.on_text = [&](std::string_view) {
    if (++tokens == 6) engine.cancel(id);
    return true;
  };
  callbacks.on_done = [&](Result result) { cancelled = std::move(result); };
  id = engine.submit(request, callbacks);
  engine.submit(request, {.on_done = [&](Result result) { other = std::move(result); }});
  engine.run();
  EXPECT_EQ(cancelled.finish_reason, FinishReason::kInterrupt);
  EXPECT_EQ(cancelled.tokens, std::vector<int>(whole.tokens.begin(), whole.tokens.begin() + 6));
  EXPECT_EQ(other.tokens, whole.tokens);
  engine.cancel(id);
  EXPECT_FALSE(engine.step());
}

TEST_P(EngineTest, IsAsBeforeAfterACallbackHasThrown) {
  Engine engine(options());
  Request request = with_tokens({2, 40, 50}, 20);
  request.session = engine.open_session();
  const auto fail = [](std::string_view) -> bool { throw std::runtime_error("mine"); };
  EXPECT_THROW(engine.generate(request, fail), std::runtime_error);
  Engine fresh(options());
  Request alone = request;
  alone.session.reset();
  EXPECT_EQ(essence(engine.generate(request)), essence(fresh.generate(alone)));
}

TEST_P(EngineTest, ScoresATextBetweenTwoSteps) {
  const std::vector<int> text = {2, 40, 50, 60, 70};
  Request request = with_tokens({2, 40, 50}, 20);
  request.options.ignore_eos = true;
  Engine engine(options(2));
  const Result expected = engine.generate(request);
  const Score score = engine.score(text);
  Result found;
  engine.submit(request, {.on_done = [&](Result result) { found = std::move(result); }});
  for (int i = 0; i < 5; ++i) engine.step();
  EXPECT_EQ(engine.score(text).logprobs, score.logprobs);
  engine.run();
  EXPECT_EQ(essence(found), essence(expected));
}

TEST_P(EngineTest, CountsTheTokensOfAConversationAsAPromptHasThem) {
  Engine engine(options());
  Request request;
  request.messages = {{.role = "system", .content = "Be kind."},
                      {.role = "user", .content = "Who are you?"},
                      {.role = "model", .content = "A girl.", .tokens = {40, 50, 60}},
                      {.role = "user", .content = "And your dog?"}};
  request.options.max_tokens = 1;
  EXPECT_EQ(engine.count_tokens(request.messages), engine.generate(request).prompt_tokens);
  request.messages.back().content = "<start_of_turn>";
  EXPECT_GT(engine.count_tokens(request.messages), engine.count_tokens(request.messages, ControlTokens::kParse));
  request.options.parse_special = true;
  EXPECT_EQ(engine.count_tokens(request.messages, ControlTokens::kParse), engine.generate(request).prompt_tokens);
  const std::vector<Message> empty;
  EXPECT_THROW(engine.count_tokens(empty), Error);
  request.messages.pop_back();
  EXPECT_THROW(engine.count_tokens(request.messages), Error);
  const Message endless{.role = "user", .content = std::string(5000, 'x')};
  EXPECT_GT(engine.count_tokens({&endless, 1}), engine.info().context);
}

}  // namespace
}  // namespace gemma
