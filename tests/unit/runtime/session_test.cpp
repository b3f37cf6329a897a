// Conversations whose text stays in the cache: what each turn reads, and how far one can go back.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gemma/error.h"
#include "unit/runtime/fake_world.h"

namespace gemma {
namespace {

class SessionTest : public ::testing::TestWithParam<bool> {
 protected:
  static WorldOptions options() {
    WorldOptions options;
    options.runs_ahead = GetParam();
    options.context = 2000;
    options.sequences = 2;
    return options;
  }

  /// Asks for an answer to `text`. @return what the listener has heard
  static std::shared_ptr<const JobLog> ask(World& world, int session, const std::vector<TextToken>& text,
                                           int max_tokens = 30) {
    JobPlan plan;
    plan.text = text;
    plan.max_tokens = max_tokens;
    plan.session = session;
    const int rows_before = rows(world);
    std::shared_ptr<const JobLog> log = world.submit(plan);
    world.run();
    EXPECT_EQ(log->ends, 1);
    EXPECT_EQ(log->tokens, whole_answer(plan));
    const int prompt_rows = static_cast<int>(text.size()) - log->cached;
    EXPECT_EQ(rows(world) - rows_before, prompt_rows + max_tokens - 1) << "what is cached is not read again";
    return log;
  }

  static int rows(World& world) {
    return world.device().rows_of(RowKind::kPrompt) + world.device().rows_of(RowKind::kGenerated);
  }

  static int size_of(const std::vector<TextToken>& text) { return static_cast<int>(text.size()); }
};

INSTANTIATE_TEST_SUITE_P(OnADevice, SessionTest, ::testing::Bool(),
                         [](const auto& tested) { return tested.param ? "ThatRunsAhead" : "InStep"; });

TEST_P(SessionTest, ReadsOnlyWhatIsNewInATurn) {
  World world(options());
  const int session = world.scheduler().open_session();
  std::vector<TextToken> text;
  for (unsigned turn = 0; turn < 6; ++turn) {
    const int known = size_of(text);
    text = joined(text, random_text(100, turn));
    const auto log = ask(world, session, text);
    // Nothing has followed an answer's last token yet: it has not been through the model.
    EXPECT_EQ(log->cached, turn == 0 ? 0 : known - 1);
    text = answered(text, log->tokens);
  }
}

TEST_P(SessionTest, ReadsOneTokenToRetryAnAnswer) {
  World world(options());
  const int session = world.scheduler().open_session();
  const std::vector<TextToken> text = random_text(300, 1);
  ask(world, session, text, 500);  // the ring goes round
  EXPECT_EQ(ask(world, session, text, 40)->cached, 299);
  EXPECT_EQ(ask(world, session, text, 500)->cached, 299);
  EXPECT_EQ(ask(world, session, text, 3)->cached, 299);
}

TEST_P(SessionTest, GoesBackToAnyTurnHoweverFarTheRingHasMovedOn) {
  World world(options());
  const int session = world.scheduler().open_session();
  std::vector<std::vector<TextToken>> ends;  // of the turns, answers included
  std::vector<TextToken> text;
  for (unsigned turn = 0; turn < 5; ++turn) {
    text = joined(text, random_text(150, turn));
    text = answered(text, ask(world, session, text, 150)->tokens);
    ends.push_back(text);
  }
  // Undone turn by turn, each time with another question in the place of the one taken back.
  for (std::size_t turn = ends.size() - 1; turn > 0; --turn) {
    const std::vector<TextToken> edited = joined(ends[turn - 1], random_text(20, 100));
    EXPECT_EQ(ask(world, session, edited, 200)->cached, size_of(ends[turn - 1]) - 1) << "after turn " << turn;
  }
}

TEST_P(SessionTest, ReadsAgainFromTheLastPointThatItCanReturnTo) {
  WorldOptions narrow = options();
  narrow.window = 64;
  World world(narrow);
  const int session = world.scheduler().open_session();
  const std::vector<TextToken> first = random_text(300, 1);
  const std::vector<TextToken> second = joined(answered(first, ask(world, session, first, 300)->tokens), {});
  const std::vector<TextToken> third = joined(second, random_text(400, 2));
  ask(world, session, third, 200);
  // In the middle of the second question: its window is long gone, but its beginning was remembered.
  std::vector<TextToken> edited = third;
  edited.resize(second.size() + 200);
  EXPECT_EQ(ask(world, session, joined(edited, random_text(10, 3)), 5)->cached, size_of(second) - 1);
  // A little way back the ring still has all that is needed.
  std::vector<TextToken> shorter = joined(edited, random_text(10, 3));
  shorter.resize(shorter.size() - 5);
  EXPECT_EQ(ask(world, session, joined(shorter, random_text(10, 4)), 5)->cached, size_of(shorter));
}

TEST_P(SessionTest, DropsTheOldestCheckpointsToStayWithinItsBudget) {
  for (const std::size_t window_count : {0, 1, 3, 100}) {
    WorldOptions limited = options();
    World unlimited(limited);
    const std::size_t window_bytes = static_cast<std::size_t>(limited.window) * unlimited.device().slot_bytes();
    limited.checkpoint_bytes = window_count * 2 * window_bytes;  // a turn keeps its beginning and its question's end
    World world(limited);
    const int session = world.scheduler().open_session();
    std::vector<std::vector<TextToken>> ends;
    std::vector<TextToken> text;
    for (unsigned turn = 0; turn < 6; ++turn) {
      text = joined(text, random_text(150, turn));
      JobPlan plan;
      plan.text = text;
      plan.max_tokens = 150;
      plan.session = session;
      const auto log = world.submit(plan);
      while (world.scheduler().step()) EXPECT_LE(world.cache().checkpoint_bytes(), limited.checkpoint_bytes);
      text = answered(text, log->tokens);
      ends.push_back(text);
    }
    // Whether one can return to it or not, the answer is the same; only the cost differs.
    const auto newest = ask(world, session, joined(ends[4], random_text(5, 9)));
    const auto oldest = ask(world, session, joined(ends[0], random_text(5, 9)));
    EXPECT_EQ(newest->cached, window_count == 0 ? 0 : size_of(ends[4]) - 1) << window_count;
    EXPECT_EQ(oldest->cached, window_count < 100 ? 0 : size_of(ends[0]) - 1) << window_count;
  }
}

TEST_P(SessionTest, GoesOnFromAnAnswerThatWasInterrupted) {
  for (int steps = 1; steps < 20; ++steps) {
    SCOPED_TRACE(std::to_string(steps) + " steps");
    World world(options());
    const int session = world.scheduler().open_session();
    JobPlan plan;
    plan.text = random_text(500, 1);
    plan.max_tokens = 100;
    plan.session = session;
    Scheduler::Ticket ticket = 0;
    const auto log = world.submit(plan, &ticket);
    for (int i = 0; i < steps; ++i) world.scheduler().step();
    world.scheduler().cancel(ticket);
    world.run();
    EXPECT_FALSE(log->is_complete);
    const int read = log->reads.back();
    const auto next = ask(world, session, joined(answered(plan.text, log->tokens), random_text(10, 2)));
    // A step that ran ahead has read the last token, too.
    EXPECT_GE(next->cached, log->tokens.empty() ? read : read + static_cast<int>(log->tokens.size()) - 1);
  }
}

TEST_P(SessionTest, RebuildsAConversationWithTheKernelsThatMadeIt) {
  World world(options());
  const int kept = world.scheduler().open_session();
  const int rebuilt = world.scheduler().open_session();
  std::vector<TextToken> text = random_text(100, 1);
  text = joined(answered(text, ask(world, kept, text)->tokens), random_text(50, 2));
  const auto expected = ask(world, kept, text);
  const auto found = ask(world, rebuilt, text);
  EXPECT_EQ(found->cached, 0);
  EXPECT_EQ(found->tokens, expected->tokens);
  // The same ids as a prompt are another text.
  std::vector<TextToken> as_prompt = text;
  for (TextToken& token : as_prompt) token.kind = RowKind::kPrompt;
  EXPECT_EQ(ask(world, kept, as_prompt)->cached, 100);
}

TEST_P(SessionTest, TakesOneRequestAtATime) {
  World world(options());
  const int session = world.scheduler().open_session();
  JobPlan plan;
  plan.text = random_text(10, 1);
  plan.session = session;
  for (int steps = 0; steps < 4; ++steps) {
    const auto log = world.submit(plan);
    for (int i = 0; i < steps; ++i) world.scheduler().step();
    EXPECT_THROW(world.submit(plan), Error);
    EXPECT_THROW(world.scheduler().close_session(session), Error);
    world.run();
    EXPECT_EQ(log->ends, 1);
  }
  world.scheduler().close_session(session);
  EXPECT_THROW(world.scheduler().close_session(session), Error);
  EXPECT_THROW(world.submit(plan), Error);
  EXPECT_EQ(world.cache().free_pages(), world.device().kv_layout().pages);
}

TEST_P(SessionTest, IsFreeWhenTheListenerHearsOfTheEnd) {
  World world(options());
  JobPlan next;
  next.text = random_text(60, 2);
  next.session = world.scheduler().open_session();
  std::shared_ptr<const JobLog> next_log;
  JobPlan plan = next;
  plan.on_end = [&](const JobLog&) { next_log = world.submit(next); };
  world.submit(plan);
  world.run();
  ASSERT_NE(next_log, nullptr);
  EXPECT_EQ(next_log->tokens, whole_answer(next));
  EXPECT_EQ(next_log->cached, 59);
}

TEST_P(SessionTest, WorksBesideOtherRequests) {
  WorldOptions crowded = options();
  crowded.sequences = 3;
  World world(crowded);
  const int session = world.scheduler().open_session();
  std::vector<std::pair<JobPlan, std::shared_ptr<const JobLog>>> others;
  std::vector<TextToken> text;
  for (unsigned turn = 0; turn < 4; ++turn) {
    for (unsigned i = 0; i < 3; ++i) {
      JobPlan plan;
      plan.text = random_text(40, 10 * turn + i);
      plan.max_tokens = 20;
      others.emplace_back(plan, world.submit(plan));
    }
    JobPlan plan;
    plan.text = text = joined(text, random_text(80, turn));
    plan.session = session;
    const auto log = world.submit(plan);
    while (log->ends == 0) world.scheduler().step();
    EXPECT_EQ(log->tokens, whole_answer(plan));
    text = answered(text, log->tokens);
  }
  world.run();
  for (const auto& [plan, log] : others) EXPECT_EQ(log->tokens, whole_answer(plan));
}

TEST(KvCacheCheckpoints, AreCopiedAsideByBlocksRatherThanSlotBySlot) {
  World world({.context = 1000, .window = 64});
  int reads = 0;
  KvCache& cache = world.cache();
  world.device().on_call = [&](std::string_view call) { reads += call == "read_slots" ? 1 : 0; };
  const KvCache::Id sequence = cache.create(1000);
  cache.extend(sequence, 100);
  cache.checkpoint(sequence);
  for (int i = 0; i < 500; ++i) cache.extend(sequence, 1);
  // The window before position 100 lies in two blocks.
  EXPECT_EQ(reads, 2);
  EXPECT_EQ(cache.checkpoint_bytes(), 63 * world.device().slot_bytes());
  EXPECT_TRUE(cache.can_truncate(sequence, 100));
}

}  // namespace
}  // namespace gemma
