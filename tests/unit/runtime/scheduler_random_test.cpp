// Random requests of all kinds at once: whatever else is going on, an answer is what the request alone would have got.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "gemma/error.h"
#include "unit/runtime/fake_world.h"

namespace gemma {
namespace {

class Crowd {
 public:
  Crowd(unsigned seed, bool runs_ahead) : random_(seed) {
    const int windows[] = {1, 5, 64, 70, 130};
    const int chunks[] = {1, 3, 17, 64, 1000};
    const std::size_t budgets[] = {0, 500, 5000, 1'000'000};
    options_.runs_ahead = runs_ahead;
    options_.sequences = 1 + below(5);
    options_.prefixes = below(5);
    options_.context = 150 + below(300);
    options_.window = windows[below(5)];
    options_.chunk = chunks[below(5)];
    options_.mixed_chunk = 1 + below(options_.chunk);
    options_.checkpoint_bytes = budgets[below(4)];
    const int context_pages = KvCache::pages_for(options_.context);
    options_.pages = context_pages + below(context_pages * options_.sequences);
    world_ = std::make_unique<World>(options_);
    for (unsigned i = 0; i < 6; ++i) prefixes_.push_back(random_text(50 + below(options_.context - 60), seed + i));
    // Two of them part from another one on their way.
    for (const std::size_t i : {1, 2}) {
      const auto common = prefixes_[0].begin() + below(static_cast<int>(prefixes_[0].size()));
      if (common - prefixes_[0].begin() >= std::ssize(prefixes_[i])) continue;
      std::copy(prefixes_[0].begin(), common, prefixes_[i].begin());
    }
  }

  void live(int moves) {
    for (int i = 0; i < moves && !::testing::Test::HasFailure(); ++i) {
      switch (below(8)) {
        case 0:
        case 1:
          submit_some();
          break;
        case 2:
          submit_to_session();
          break;
        case 3:
          open_or_close_session();
          break;
        case 4:
          if (!jobs_.empty()) cancel(any_job());
          break;
        default:
          for (int steps = below(12); steps > 0; --steps) world_->scheduler().step();
          break;
      }
    }
    world_->run();
    for (const Submitted& job : jobs_) check(job);
    for (const auto& [session, text] : sessions_) world_->scheduler().close_session(session);
    world_->scheduler().make_way();
    EXPECT_EQ(world_->cache().free_pages(), options_.pages);
    EXPECT_EQ(world_->cache().checkpoint_bytes(), 0u);
  }

  int complete() const { return complete_; }
  int cached() const { return cached_; }

 private:
  struct Submitted {
    JobPlan plan;
    Scheduler::Ticket ticket = 0;
    std::shared_ptr<const JobLog> log;
    bool is_cancelled = false;
  };

  int below(int limit) { return static_cast<int>(random_() % static_cast<unsigned>(limit)); }
  Submitted& any_job() { return jobs_[static_cast<std::size_t>(below(static_cast<int>(jobs_.size())))]; }

  void cancel(Submitted& job) {
    world_->scheduler().cancel(job.ticket);
    job.is_cancelled = true;
  }

  // A text of prompt tokens and earlier answers.
  std::vector<TextToken> some_text(int size) {
    std::vector<TextToken> text = random_text(size, static_cast<unsigned>(random_()));
    if (below(3) == 0) {
      const int first = below(size);
      const int last = first + below(size - first);
      for (int i = first; i < last; ++i) text[static_cast<std::size_t>(i)].kind = RowKind::kGenerated;
    }
    return text;
  }

  JobPlan plan_for(std::vector<TextToken> text) {
    JobPlan plan;
    plan.text = std::move(text);
    plan.max_tokens = 1 + below(std::min(options_.context - static_cast<int>(plan.text.size()), 40));
    plan.seed = random_();
    if (below(3) == 0) plan.repeat_penalty = 1.5f;
    if (below(3) == 0) {
      const auto next = below(2) == 0 ? JobListener::Next::kEnd : JobListener::Next::kEndHere;
      plan.on_token = [next](int token, const JobLog&) { return token % 8 == 0 ? next : JobListener::Next::kGoOn; };
    }
    return plan;
  }

  bool submit(JobPlan plan) {
    Submitted job{std::move(plan), 0, nullptr, false};
    try {
      job.log = world_->submit(job.plan, &job.ticket);
    } catch (const Error&) {
      EXPECT_FALSE(sessions_.empty()) << "only open sessions can leave no room for a request";
      return false;
    }
    jobs_.push_back(std::move(job));
    return true;
  }

  void submit_some() {
    for (int count = 1 + below(6); count > 0; --count) {
      std::vector<TextToken> text;
      if (below(2) == 0) {
        text = prefixes_[static_cast<std::size_t>(below(static_cast<int>(prefixes_.size())))];
        if (below(4) == 0) text.resize(1 + static_cast<std::size_t>(below(static_cast<int>(text.size()))));
      }
      const int room = options_.context - 1 - static_cast<int>(text.size());
      const int most = below(4) == 0 ? room : std::min(room, 30);
      submit(plan_for(joined(std::move(text), some_text(1 + below(most)))));
    }
  }

  void open_or_close_session() {
    if (!sessions_.empty() && below(3) == 0) {
      const auto session = sessions_.begin();
      try {
        world_->scheduler().close_session(session->first);
        sessions_.erase(session);
      } catch (const Error&) {
        EXPECT_TRUE(is_busy(session->first));
      }
      return;
    }
    try {
      EXPECT_TRUE(sessions_.try_emplace(world_->scheduler().open_session(), Conversation{}).second);
    } catch (const Error&) {
      // There may be no room, which other tests are about.
    }
  }

  struct Conversation {
    std::vector<std::vector<TextToken>> prompts;  // of its turns
    std::size_t job = 0;                          // of the newest turn
  };

  bool is_busy(int session) const {
    return std::any_of(jobs_.begin(), jobs_.end(),
                       [&](const Submitted& job) { return job.plan.session == session && job.log->ends == 0; });
  }

  // Goes on, retries, goes back a few turns, edits, or begins another conversation.
  void submit_to_session() {
    if (sessions_.empty()) return;
    auto place = sessions_.begin();
    std::advance(place, below(static_cast<int>(sessions_.size())));
    auto& [session, conversation] = *place;
    std::vector<TextToken> text;
    if (!conversation.prompts.empty() && !is_busy(session)) {
      const Submitted& last = jobs_[conversation.job];
      switch (below(6)) {
        case 0:
          text = conversation.prompts.back();
          break;
        case 1:
          text = conversation.prompts[static_cast<std::size_t>(below(static_cast<int>(conversation.prompts.size())))];
          text = joined(std::move(text), some_text(1 + below(20)));
          break;
        case 2:
          text = answered(last.plan.text, last.log->tokens);
          text.resize(1 + static_cast<std::size_t>(below(static_cast<int>(text.size()))));
          text = joined(std::move(text), some_text(1 + below(20)));
          break;
        default:
          text = joined(answered(last.plan.text, last.log->tokens), some_text(1 + below(60)));
          break;
      }
    }
    if (text.empty() || static_cast<int>(text.size()) >= options_.context) text = some_text(1 + below(50));
    JobPlan plan = plan_for(std::move(text));
    plan.session = session;
    if (is_busy(session)) {
      EXPECT_THROW(world_->submit(plan), Error);
      return;
    }
    if (!submit(plan)) return;
    conversation.prompts.push_back(plan.text);
    conversation.job = jobs_.size() - 1;
  }

  void check(const Submitted& job) {
    const JobLog& log = *job.log;
    ASSERT_EQ(log.ends, 1) << "a listener hears of the end once";
    ASSERT_TRUE(log.is_complete || job.is_cancelled);
    std::vector<int> expected;
    bool has_stopped = false;
    for (int token : whole_answer(job.plan)) {
      const auto next = job.plan.on_token ? job.plan.on_token(token, log) : JobListener::Next::kGoOn;
      if (next != JobListener::Next::kEndHere) expected.push_back(token);
      has_stopped = next != JobListener::Next::kGoOn;
      if (has_stopped) break;
    }
    if (!log.is_complete) {
      ASSERT_LE(log.tokens.size(), expected.size());
      expected.resize(log.tokens.size());
    }
    ASSERT_EQ(log.tokens, expected);
    complete_ += log.is_complete ? 1 : 0;
    cached_ += log.cached;
  }

  WorldOptions options_;
  std::mt19937 random_;
  std::unique_ptr<World> world_;
  std::vector<std::vector<TextToken>> prefixes_;
  std::vector<Submitted> jobs_;
  std::map<int, Conversation> sessions_;
  int complete_ = 0;
  int cached_ = 0;
};

class SchedulerInACrowd : public ::testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(OnADevice, SchedulerInACrowd, ::testing::Bool(),
                         [](const auto& tested) { return tested.param ? "ThatRunsAhead" : "InStep"; });

TEST_P(SchedulerInACrowd, GivesEveryRequestTheAnswerThatItWouldGetAlone) {
  int complete = 0;
  int cached = 0;
  for (unsigned seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Crowd crowd(seed, GetParam());
    crowd.live(80);
    if (HasFailure()) return;
    complete += crowd.complete();
    cached += crowd.cached();
  }
  EXPECT_GT(complete, 2000);
  EXPECT_GT(cached, 20'000) << "sharing and sessions have hardly been tried";
}

}  // namespace
}  // namespace gemma
