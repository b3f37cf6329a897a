#include "cli/chat_settings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "support/error_text.h"

namespace gemma::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

std::string shown(const GenerationOptions& options, const std::string& name) {
  const auto all = settings_of(options);
  const std::map<std::string, std::string> values(all.begin(), all.end());
  return values.at(name);
}

TEST(ChatSettings, ShowWhatNobodyHasSet) {
  const GenerationOptions options;
  EXPECT_EQ(shown(options, "temperature"), "the model's");
  EXPECT_EQ(shown(options, "max-tokens"), "512");
  EXPECT_EQ(shown(options, "repeat-penalty"), "1");
  EXPECT_EQ(shown(options, "stop"), "none");
  EXPECT_EQ(shown(options, "ignore-eos"), "off");
}

TEST(ChatSettings, TakeTheValuesOfTheCommandLinesOptions) {
  GenerationOptions options;
  const std::vector<std::pair<std::string, std::string>> values = {
      {"temperature", "0.7"},
      {"top-k", "5"},
      {"top-p", "0.5"},
      {"min-p", "0.25"},
      {"repeat-penalty", "1.5"},
      {"max-tokens", "9"},
      {"seed", "18446744073709551615"},
      {"stop", "'THE END'"},
      {"ignore-eos", "on"},
  };
  for (const auto& [name, value] : values) {
    change_setting(options, name, value);
    EXPECT_THAT(shown(options, name), HasSubstr(value));
  }
  EXPECT_EQ(options.temperature, 0.7f);
  EXPECT_EQ(options.top_k, 5);
  EXPECT_EQ(options.seed, 18446744073709551615u);
  EXPECT_EQ(options.stop, std::vector<std::string>{"THE END"});
  EXPECT_TRUE(options.ignore_eos);
}

TEST(ChatSettings, LoseTheQuotesAroundThem) {
  GenerationOptions options;
  for (const auto& [value, stop] : std::vector<std::pair<std::string, std::string>>{
           {"\"a b\"", "a b"}, {"' a '", " a "}, {"a \"b\"", "a \"b\""}, {"\"", "\""}, {"'\"'", "\""}}) {
    change_setting(options, "stop", value);
    EXPECT_EQ(options.stop, std::vector<std::string>{stop});
  }
  EXPECT_THAT(error_text([&] { change_setting(options, "stop", "\"\""); }), HasSubstr("stop"));
}

TEST(ChatSettings, GoBackToTheirDefaultWithoutAValue) {
  GenerationOptions options;
  options.temperature = 0.5f;
  options.stop = {"a", "b"};
  options.max_tokens = 3;
  for (const char* name : {"temperature", "stop", "max-tokens"}) change_setting(options, name, "");
  EXPECT_EQ(options.temperature, std::nullopt);
  EXPECT_TRUE(options.stop.empty());
  EXPECT_EQ(options.max_tokens, 512);
}

TEST(ChatSettings, ChangeNothingElse) {
  GenerationOptions options;
  options.top_k = 7;
  options.seed = 3;
  change_setting(options, "temperature", "0");
  EXPECT_EQ(options.top_k, 7);
  EXPECT_EQ(options.seed, 3u);
}

TEST(ChatSettings, RefuseWhatTheCommandLineRefuses) {
  GenerationOptions options;
  options.temperature = 0.5f;
  const auto refusal = [&options](const std::string& name, const std::string& value) {
    return error_text([&] { change_setting(options, name, value); });
  };
  EXPECT_EQ(refusal("temperature", "-1"), "temperature: '-1' is not a number of at least 0");
  for (const auto& [name, value] : std::map<std::string, std::string>{{"temperature", "hot"},
                                                                      {"top-k", "-1"},
                                                                      {"top-p", "0"},
                                                                      {"min-p", "2"},
                                                                      {"repeat-penalty", "0"},
                                                                      {"max-tokens", "1.5"},
                                                                      {"seed", "-1"},
                                                                      {"ignore-eos", "perhaps"}}) {
    EXPECT_THAT(refusal(name, value), HasSubstr(name)) << value;
    EXPECT_THAT(refusal(name, value), Not(HasSubstr("\n"))) << value;
  }
  EXPECT_THAT(refusal("tempreature", "1"), HasSubstr("there are max-tokens, temperature"));
  EXPECT_THAT(refusal("chat", "on"), HasSubstr("no setting 'chat'"));
  EXPECT_THAT(refusal("help", "1"), HasSubstr("no setting 'help'"));
  EXPECT_EQ(options.temperature, 0.5f);
}

}  // namespace
}  // namespace gemma::cli
