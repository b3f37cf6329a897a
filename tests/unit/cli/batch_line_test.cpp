#include "cli/batch_line.h"

#include <gmock/gmock.h>

#include <set>
#include <string>

namespace gemma::cli {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

BatchLine parse(const std::string& text, const GenerationOptions& defaults = {}) {
  return parse_json_line(text, defaults);
}

TEST(BatchLine, IsAPromptWithoutIdByItself) {
  const BatchLine line = parse(R"({"prompt": "Once"})");
  EXPECT_EQ(line.error, "");
  EXPECT_TRUE(line.id.is_null());
  EXPECT_EQ(line.request.prompt, "Once");
  EXPECT_EQ(line.request.options.max_tokens, 512);
  EXPECT_EQ(line.request.options.seed, std::nullopt);
}

TEST(BatchLine, TakesEveryOptionByItsNameOnTheCommandLine) {
  const BatchLine line =
      parse(R"({"id": 7, "prompt": "", "max_tokens": 3, "temperature": 0.5, "top_k": 2, "top_p": 0.25,
    "min_p": 0.125, "repeat_penalty": 1.5, "seed": 18446744073709551615, "stop": ["a", "b"], "ignore_eos": true,
    "logprobs": 4, "chat": true, "model": "x", "user": "y", "metadata": {"z": 1}})");
  ASSERT_EQ(line.error, "");
  EXPECT_EQ(line.id, 7);
  const GenerationOptions& options = line.request.options;
  EXPECT_EQ(options.max_tokens, 3);
  EXPECT_EQ(options.temperature, 0.5f);
  EXPECT_EQ(options.top_k, 2);
  EXPECT_EQ(options.top_p, 0.25f);
  EXPECT_EQ(options.min_p, 0.125f);
  EXPECT_EQ(options.repeat_penalty, 1.5f);
  EXPECT_EQ(options.seed, 18446744073709551615u);
  EXPECT_THAT(options.stop, ElementsAre("a", "b"));
  EXPECT_TRUE(options.ignore_eos);
  EXPECT_EQ(options.logprobs, 4);
  EXPECT_EQ(options.chat, true);
}

TEST(BatchLine, KeepsTheRunsOptionsWhereItSaysNothingOrNull) {
  GenerationOptions defaults;
  defaults.max_tokens = 9;
  defaults.temperature = 0.0f;
  defaults.stop = {"end"};
  const BatchLine line = parse(R"({"prompt": "x", "temperature": null, "top_k": 1})", defaults);
  ASSERT_EQ(line.error, "");
  EXPECT_EQ(line.request.options.max_tokens, 9);
  EXPECT_EQ(line.request.options.temperature, 0.0f);
  EXPECT_EQ(line.request.options.top_k, 1);
  EXPECT_THAT(line.request.options.stop, ElementsAre("end"));
}

TEST(BatchLine, TakesIdsAndMessagesForAPrompt) {
  EXPECT_THAT(parse(R"({"prompt": [2, 15, 77]})").request.tokens, ElementsAre(2, 15, 77));
  const BatchLine line = parse(R"({"messages": [{"role": "developer", "content": "Be brief."},
    {"role": "user", "name": "Tim", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]})");
  ASSERT_EQ(line.error, "");
  ASSERT_EQ(line.request.messages.size(), 2u);
  EXPECT_EQ(line.request.messages[0].role, "system");
  EXPECT_EQ(line.request.messages[0].content, "Be brief.");
  EXPECT_EQ(line.request.messages[1].content, "a\nb");
}

TEST(BatchLine, UnderstandsOpenAisChatCompletions) {
  const BatchLine line = parse(R"({"custom_id": "r-1", "method": "POST", "url": "/v1/chat/completions", "body": {
    "model": "gpt", "messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 5, "temperature": 0,
    "n": 1, "presence_penalty": 0.0, "tools": [], "response_format": {"type": "text"}, "stream": false, "store": true,
    "logprobs": true, "top_logprobs": 3, "stop": "\n"}})");
  ASSERT_EQ(line.error, "");
  EXPECT_EQ(line.id, "r-1");
  EXPECT_EQ(line.request.messages.at(0).content, "Hi");
  EXPECT_EQ(line.request.options.max_tokens, 5);
  EXPECT_EQ(line.request.options.temperature, 0.0f);
  EXPECT_EQ(line.request.options.logprobs, 3);
  EXPECT_THAT(line.request.options.stop, ElementsAre("\n"));
}

TEST(BatchLine, UnderstandsOpenAisCompletionsWhichAreNoChat) {
  GenerationOptions defaults;
  defaults.chat = true;
  const BatchLine line = parse(
      R"({"custom_id": "c", "url": "/v1/completions", "body": {"prompt": "Once", "max_tokens": 4, "logprobs": 2}})",
      defaults);
  ASSERT_EQ(line.error, "");
  EXPECT_EQ(line.request.prompt, "Once");
  EXPECT_EQ(line.request.options.chat, false);
  EXPECT_EQ(line.request.options.logprobs, 2);
}

struct BadLine {
  std::string text;
  std::string error;
};

void PrintTo(const BadLine& line, std::ostream* out) { *out << line.text.substr(0, 80); }

class BatchLineRefuses : public testing::TestWithParam<BadLine> {};

TEST_P(BatchLineRefuses, AndSaysWhy) { EXPECT_THAT(parse(GetParam().text).error, HasSubstr(GetParam().error)); }

std::string repeated(const std::string& text, int times) {
  std::string all;
  for (int i = 0; i < times; ++i) all += text;
  return all;
}

std::string openai(const std::string& members, const std::string& url = "/v1/chat/completions") {
  return R"({"custom_id": "a", "url": ")" + url + R"(", "body": {"messages": [{"role": "user", "content": "x"}])" +
         members + "}}";
}

INSTANTIATE_TEST_SUITE_P(
    Json, BatchLineRefuses,
    testing::Values(BadLine{"", "not valid JSON"}, BadLine{"{\"prompt\": \"x\"", "not valid JSON"},
                    BadLine{"{\"prompt\": NaN}", "not valid JSON"},
                    BadLine{"{\"prompt\": \"\\ud800\"}", "not valid JSON"},
                    BadLine{"{\"prompt\": \"x\"} {}", "not valid JSON"}, BadLine{"[1]", "not a JSON object"},
                    BadLine{"{\"prompt\": \"\xFF\"}", "not valid UTF-8: bad byte at offset 12"},
                    BadLine{R"({"prompt": "x", "temperature": 1e999})", "number that is too large"},
                    BadLine{R"({"prompt": "a", "prompt": "b"})", "'prompt' twice"},
                    BadLine{R"({"prompt": "a", "metadata": {"k": 1, "k": 2}})", "'k' twice"},
                    BadLine{repeated("[", 1 << 20), "nested too deeply"},
                    BadLine{"{\"prompt\": [" + repeated("[],", 1 << 20) + "1]}", "too many values"},
                    BadLine{"{\"prompt\": " + repeated("{\"a\":", 1 << 16), "nested too deeply"}));

INSTANTIATE_TEST_SUITE_P(
    OwnLines, BatchLineRefuses,
    testing::Values(
        BadLine{"{}", "either 'prompt' or 'messages'"},
        BadLine{R"({"prompt": "a", "messages": []})", "either 'prompt' or 'messages'"},
        BadLine{R"({"prompt": "a", "temprature": 1})", "unknown option 'temprature'"},
        BadLine{R"({"prompt": "a", "parse_special": true})", "unknown option 'parse_special'"},
        BadLine{R"({"prompt": 5})", "neither a text nor a list of token ids"},
        BadLine{R"({"prompt": ["a", "b"]})", "one prompt on a line"}, BadLine{R"({"prompt": [2, 1e10]})", "token ids"},
        BadLine{R"({"prompt": "a", "max_tokens": 1.5})", "'max_tokens' that is not a whole number"},
        BadLine{R"({"prompt": "a", "max_tokens": 4294967296})", "'max_tokens' that is out of range"},
        BadLine{R"({"prompt": "a", "temperature": "hot"})", "'temperature' that is not a number"},
        BadLine{R"({"prompt": "a", "temperature": 1e300})", "'temperature' that is out of range"},
        BadLine{R"({"prompt": "a", "seed": -1})", "'seed'"}, BadLine{R"({"prompt": "a", "stop": 3})", "'stop'"},
        BadLine{R"({"prompt": "a", "stop": ["b", 3]})", "'stop'"},
        BadLine{R"({"prompt": "a", "chat": 1})", "'chat' that is neither true nor false"},
        BadLine{R"({"prompt": "a", "logprobs": 1001})", "more than 1000 'logprobs'"},
        BadLine{R"({"prompt": "a", "chat": true, "raw": true})", "both 'chat' and 'raw'"},
        BadLine{R"({"prompt": "a", "id": {}})", "'id' that is neither"},
        BadLine{R"({"prompt": "a", "id": 12345678901234567890123})", "'id' that is a fraction, or too large"},
        BadLine{R"({"prompt": "a", "id": 1.50})", "write it as a text"},
        BadLine{R"({"messages": [{"role": "user", "content": "a"}], "raw": true})", "always a chat"},
        BadLine{R"({"messages": [{"role": "user"}]})", "no 'content'"},
        BadLine{R"({"messages": [{"role": "user", "content": 5}]})", "'content'"},
        BadLine{R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})", "not text"},
        BadLine{R"({"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]})", "'tool_calls'"},
        BadLine{R"({"messages": ["a"]})", "not an object"}, BadLine{R"({"messages": []})", "'messages'"}));

INSTANTIATE_TEST_SUITE_P(
    OpenAiLines, BatchLineRefuses,
    testing::Values(BadLine{R"({"custom_id": "a", "body": 1})", "'body' that is not an object"},
                    BadLine{R"({"custom_id": "a", "body": {"prompt": "x"}, "extra": 1})", "'extra'"},
                    BadLine{R"({"method": "GET", "body": {"prompt": "x"}})", "not POST"},
                    BadLine{openai("", "/v1/embeddings"), "another 'url'"},
                    BadLine{openai("", "/v1/completions"), "another 'url'"},
                    BadLine{openai(R"(, "n": 2)"), "asks for 'n'"},
                    BadLine{openai(R"(, "presence_penalty": 0.5)"), "asks for 'presence_penalty'"},
                    BadLine{openai(R"(, "tools": [{}])"), "asks for 'tools'"},
                    BadLine{openai(R"(, "response_format": {"type": "json_object"})"), "asks for 'response_format'"},
                    BadLine{openai(R"(, "reasoning_effort": "low")"), "asks for 'reasoning_effort'"},
                    BadLine{openai(R"(, "max_tokens": 3, "max_completion_tokens": 4)"), "that differ"},
                    BadLine{openai(R"(, "top_logprobs": 3)"), "'top_logprobs' without"},
                    BadLine{openai(R"(, "logprobs": 3)"), "'logprobs' that is neither true nor false"}));

TEST(BatchLine, KeepsAWholeNumberOf64BitsAsItsId) {
  EXPECT_EQ(parse(R"({"id": 18446744073709551615, "prompt": "a"})").id.dump(), "18446744073709551615");
  EXPECT_EQ(parse(R"({"id": -9223372036854775808, "prompt": "a"})").id.dump(), "-9223372036854775808");
}

TEST(BatchLine, KeepsItsIdWhenTheRestIsBad) {
  EXPECT_EQ(parse(R"({"id": "a", "prompt": 5})").id, "a");
  EXPECT_EQ(parse(R"({"custom_id": "b", "body": 5})").id, "b");
}

TEST(BatchLine, OfTextIsThePromptAsItStands) {
  EXPECT_EQ(parse_text_line(R"( {"prompt": 5} )", {}).request.prompt, R"( {"prompt": 5} )");
  EXPECT_THAT(parse_text_line("ab\xC3", {}).error, HasSubstr("bad byte at offset 2"));
}

TEST(LineSeed, DependsOnTheRunsSeedAndTheIndexAndNothingElse) {
  EXPECT_EQ(line_seed(1, 2), line_seed(1, 2));
  std::set<std::uint64_t> seeds;
  for (std::uint64_t run = 0; run < 100; ++run) {
    for (std::uint64_t index = 0; index < 100; ++index) seeds.insert(line_seed(run, index));
  }
  EXPECT_EQ(seeds.size(), 10000u);
}

}  // namespace
}  // namespace gemma::cli
