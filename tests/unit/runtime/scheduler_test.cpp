// The scheduler on a device without arithmetic or time: who gets which rows, and what happens when plans change.
#include "runtime/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gemma/error.h"
#include "unit/runtime/fake_world.h"

namespace gemma {
namespace {

using Next = JobListener::Next;

/// On a device in step with the host, and on one that runs ahead.
class SchedulerTest : public ::testing::TestWithParam<bool> {
 protected:
  static WorldOptions options() {
    WorldOptions options;
    options.runs_ahead = GetParam();
    return options;
  }

  static JobPlan plan(int size, unsigned seed, int max_tokens = 10) {
    JobPlan plan;
    plan.text = random_text(size, seed);
    plan.max_tokens = max_tokens;
    plan.seed = seed;
    return plan;
  }

  static void step(World& world, int count) {
    for (int i = 0; i < count; ++i) world.scheduler().step();
  }

  /// Expects that an answer is what the job alone would get, whole or as far as it goes.
  static void expect_answer(const JobPlan& plan, const JobLog& log, bool is_whole = true) {
    EXPECT_EQ(log.ends, 1);
    EXPECT_EQ(log.is_complete, is_whole);
    std::vector<int> expected = whole_answer(plan);
    if (!is_whole) expected.resize(std::min(expected.size(), log.tokens.size()));
    EXPECT_EQ(log.tokens, expected);
  }
};

INSTANTIATE_TEST_SUITE_P(OnADevice, SchedulerTest, ::testing::Bool(),
                         [](const auto& tested) { return tested.param ? "ThatRunsAhead" : "InStep"; });

// --- steps ---

TEST_P(SchedulerTest, GivesEveryAnswerThatIsBeingMadeARowInEveryStep) {
  WorldOptions with_long_prompts = options();
  with_long_prompts.sequences = 8;
  with_long_prompts.chunk = 100;
  with_long_prompts.mixed_chunk = 7;
  World world(with_long_prompts);
  std::vector<JobPlan> plans;
  std::vector<std::shared_ptr<const JobLog>> logs;
  for (unsigned i = 0; i < 12; ++i) {
    plans.push_back(plan(i % 3 == 0 ? 200 : 5, i, 50));
    logs.push_back(world.submit(plans.back()));
  }
  bool goes_on = true;
  while (goes_on) {
    std::vector<std::size_t> tokens_before;
    for (const auto& log : logs) tokens_before.push_back(log->tokens.size());
    const std::size_t step = world.device().steps().size();
    goes_on = world.scheduler().step();
    for (std::size_t i = 0; i < logs.size(); ++i) {
      const bool was_drawing = tokens_before[i] > 0 && tokens_before[i] < 50;
      EXPECT_TRUE(!was_drawing || logs[i]->tokens.size() == tokens_before[i] + 1);
    }
    for (std::size_t s = step; s < world.device().steps().size(); ++s) {
      const FakeDevice::StepLog& log = world.device().steps()[s];
      const bool is_mixed = log.rows_of(RowKind::kGenerated) > 0;
      EXPECT_LE(log.rows_of(RowKind::kPrompt), is_mixed ? 7 : 100);
    }
  }
  for (std::size_t i = 0; i < logs.size(); ++i) expect_answer(plans[i], *logs[i]);
}

TEST_P(SchedulerTest, ReadsPromptsInTheOrderOfSubmission) {
  WorldOptions narrow = options();
  narrow.chunk = 10;
  World world(narrow);
  std::vector<unsigned> order;
  for (unsigned i = 0; i < 4; ++i) {
    JobPlan job = plan(25, i, 2);
    job.on_token = [&order, i](int, const JobLog& log) {
      if (log.tokens.size() == 1) order.push_back(i);
      return Next::kGoOn;
    };
    world.submit(job);
  }
  world.run();
  EXPECT_EQ(order, (std::vector<unsigned>{0, 1, 2, 3}));
}

TEST_P(SchedulerTest, KeepsAStepWithRereadAnswersWithinTheRowsOfTheDevice) {
  WorldOptions narrow = options();
  narrow.chunk = 8;
  World world(narrow);  // the fake device checks every step
  std::vector<JobPlan> plans;
  std::vector<std::shared_ptr<const JobLog>> logs;
  for (unsigned i = 0; i < 4; ++i) {
    plans.push_back(plan(100, i));
    if (i % 2 == 1) {
      for (TextToken& token : plans.back().text) token.kind = RowKind::kGenerated;
    }
    logs.push_back(world.submit(plans.back()));
  }
  world.run();
  for (std::size_t i = 0; i < logs.size(); ++i) expect_answer(plans[i], *logs[i]);
  EXPECT_GE(world.device().rows_of(RowKind::kGenerated), 200) << "answers keep their kernels when they are read again";
}

TEST(Scheduler, GivesOutAStepAheadOfTheAnswersWhenNothingChanges) {
  WorldOptions ahead;
  ahead.runs_ahead = true;
  World world(ahead);
  for (unsigned i = 0; i < 3; ++i) {
    JobPlan job;
    job.text = random_text(10, i);
    job.max_tokens = 50;
    world.submit(job);
  }
  world.run();
  const std::vector<FakeDevice::StepLog>& steps = world.device().steps();
  const auto is_ahead = std::count_if(steps.begin(), steps.end(), [](const auto& step) { return step.is_ahead; });
  EXPECT_EQ(steps.size(), 50u) << "no step is made in vain";
  EXPECT_GE(is_ahead, 48) << "all but the prompts' and the first";
}

TEST_P(SchedulerTest, TellsTheDeviceTheRecentTokensForTheRepeatPenalty) {
  World world(options());  // the fake device checks them
  JobPlan penalised = plan(90, 1, 30);
  penalised.repeat_penalty = 1.3f;
  const JobPlan other = plan(20, 2, 30);
  const auto first = world.submit(penalised);
  const auto second = world.submit(other);
  world.run();
  expect_answer(penalised, *first);
  expect_answer(other, *second);
}

TEST_P(SchedulerTest, EndsAnAnswerWithOrWithoutItsLastToken) {
  World world(options());
  for (const Next next : {Next::kEnd, Next::kEndHere}) {
    JobPlan job = plan(10, 3);
    job.on_token = [next](int, const JobLog& log) { return log.tokens.size() == 4 ? next : Next::kGoOn; };
    const auto log = world.submit(job);
    world.run();
    EXPECT_TRUE(log->is_complete);
    std::vector<int> expected = whole_answer(job);
    expected.resize(next == Next::kEnd ? 4 : 3);
    EXPECT_EQ(log->tokens, expected);
  }
}

TEST_P(SchedulerTest, EndsAJobForNoTokensWithoutReadingIt) {
  World world(options());
  const auto log = world.submit(plan(50, 1, 0));
  EXPECT_FALSE(world.scheduler().step());
  EXPECT_EQ(log->ends, 1);
  EXPECT_TRUE(log->is_complete);
  EXPECT_EQ(log->starts, 0);
  EXPECT_TRUE(world.device().steps().empty());
}

// --- admission ---

TEST_P(SchedulerTest, AdmitsInOrderWhatFitsToItsLongestAnswer) {
  WorldOptions small = options();
  small.sequences = 5;
  small.pages = 7;
  World world(small);
  // Pages at their longest: 3, 3, 2, 1, 1. The third must wait for one of the first two, the others behind it.
  const int lengths[] = {150, 150, 100, 30, 30};
  std::vector<JobPlan> plans;
  std::vector<std::shared_ptr<const JobLog>> logs;
  for (unsigned i = 0; i < 5; ++i) {
    plans.push_back(plan(10, i, lengths[i] - 10));
    logs.push_back(world.submit(plans.back()));
  }
  step(world, 20);
  EXPECT_EQ(logs[0]->starts + logs[1]->starts, 2);
  EXPECT_EQ(logs[2]->starts + logs[3]->starts + logs[4]->starts, 0);
  while (logs[0]->ends == 0) step(world, 1);
  step(world, 2);
  EXPECT_EQ(logs[2]->starts, 1);
  EXPECT_GE(world.cache().free_pages(), 0);
  world.run();
  for (std::size_t i = 0; i < logs.size(); ++i) expect_answer(plans[i], *logs[i]);
  EXPECT_EQ(world.cache().free_pages(), 7);
}

TEST_P(SchedulerTest, RefusesAtOnceWhatNeverFitsBesideTheOpenSessions) {
  WorldOptions small = options();
  small.sequences = 2;
  small.pages = 10;  // a session takes 7
  World world(small);
  EXPECT_NO_THROW(world.submit(plan(10, 1, 390)));
  world.run();
  const int session = world.scheduler().open_session();
  EXPECT_THROW(world.submit(plan(10, 1, 3 * kPagePositions - 9)), Error);
  EXPECT_NO_THROW(world.submit(plan(10, 1, 3 * kPagePositions - 10)));
  EXPECT_THROW(world.scheduler().open_session(), Error);
  world.run();
  world.scheduler().close_session(session);
  EXPECT_NO_THROW(world.submit(plan(10, 1, 390)));
  world.run();
}

TEST_P(SchedulerTest, OpensNoSessionThatWouldLeaveNoRoomForAJobThatWaits) {
  WorldOptions small = options();
  small.sequences = 2;
  small.pages = 10;
  World world(small);
  const JobPlan large = plan(10, 1, 300);
  const auto log = world.submit(large);
  EXPECT_THROW(world.scheduler().open_session(), Error);
  world.run();
  expect_answer(large, *log);
  EXPECT_NO_THROW(world.scheduler().open_session());
}

// --- prefixes ---

TEST_P(SchedulerTest, ReadsWhatPromptsHaveInCommonOnce) {
  WorldOptions roomy = options();
  roomy.window = 130;
  World world(roomy);
  const std::vector<TextToken> instruction = random_text(150, 1);
  std::vector<JobPlan> plans;
  std::vector<std::shared_ptr<const JobLog>> logs;
  for (unsigned i = 0; i < 20; ++i) {
    plans.push_back(plan(1, i));
    // Some go the same way a little further, and then they part.
    plans.back().text = joined(joined(instruction, random_text(static_cast<int>(i % 3), 7)), random_text(15, 100 + i));
    logs.push_back(world.submit(plans.back()));
  }
  world.run();
  for (std::size_t i = 0; i < logs.size(); ++i) {
    expect_answer(plans[i], *logs[i]);
    EXPECT_TRUE(i == 0 || logs[i]->cached >= 150);
  }
  EXPECT_LE(world.device().rows_of(RowKind::kPrompt), 150 + 20 * 17);
}

TEST_P(SchedulerTest, SharesThePagesOfAPrefix) {
  WorldOptions small = options();
  small.sequences = 4;
  small.context = 300;
  small.pages = 9;
  World world(small);
  const std::vector<TextToken> instruction = random_text(4 * kPagePositions, 1);
  std::vector<std::shared_ptr<const JobLog>> logs;
  int most_at_once = 0;
  for (unsigned i = 0; i < 8; ++i) {
    JobPlan job = plan(1, i, 20);
    job.text = joined(instruction, random_text(5, 100 + i));
    logs.push_back(world.submit(job));
  }
  while (world.scheduler().step()) {
    most_at_once = std::max(most_at_once, static_cast<int>(world.device().steps().back().parts.size()));
  }
  EXPECT_EQ(most_at_once, 4) << "each alone takes five pages of nine";
}

TEST_P(SchedulerTest, LetsAnotherReadThePrefixWhenItsReaderIsCancelled) {
  WorldOptions narrow = options();
  narrow.chunk = 10;
  World world(narrow);
  const std::vector<TextToken> instruction = random_text(100, 1);
  std::vector<JobPlan> plans;
  std::vector<std::shared_ptr<const JobLog>> logs;
  Scheduler::Ticket reader = 0;
  for (unsigned i = 0; i < 4; ++i) {
    plans.push_back(plan(1, i));
    plans.back().text = joined(instruction, random_text(15, 100 + i));
    logs.push_back(world.submit(plans.back(), i == 0 ? &reader : nullptr));
  }
  step(world, 3);
  EXPECT_EQ(logs[1]->starts, 0) << "it waits for the prefix";
  world.scheduler().cancel(reader);
  world.run();
  EXPECT_FALSE(logs[0]->is_complete);
  for (std::size_t i = 1; i < logs.size(); ++i) expect_answer(plans[i], *logs[i]);
  EXPECT_EQ(logs[1]->cached, 0);
  EXPECT_EQ(logs[2]->cached, 100);
}

TEST_P(SchedulerTest, GivesAPrefixUpForASessionOrAJobThatNeedsItsRoom) {
  WorldOptions small = options();
  small.sequences = 2;
  small.pages = 8;
  World world(small);
  const std::vector<TextToken> instruction = random_text(100, 1);
  const auto read_prefix = [&] {
    for (unsigned i = 0; i < 2; ++i) {
      JobPlan job = plan(1, i);
      job.text = joined(instruction, random_text(5, i));
      world.submit(job);
    }
    world.run();
    EXPECT_LT(world.cache().free_pages(), 7) << "the prefix is kept";
  };
  read_prefix();
  const JobPlan large = plan(10, 5, 390);
  const auto log = world.submit(large);
  world.run();
  expect_answer(large, *log);
  read_prefix();
  EXPECT_NO_THROW(world.scheduler().open_session());
}

/// Jobs behind instructions that take turns: instruction, then what is each job's own.
struct Interleaved {
  std::vector<JobPlan> plans;
  std::vector<std::shared_ptr<const JobLog>> logs;
  std::vector<Scheduler::Ticket> tickets;
};

Interleaved submit_interleaved(World& world, int groups, int count, int instruction = 150, int own = 15) {
  Interleaved jobs;
  for (int i = 0; i < count; ++i) {
    JobPlan plan;
    plan.text = joined(random_text(instruction, 1000 + static_cast<unsigned>(i % groups)),
                       random_text(own, static_cast<unsigned>(i)));
    plan.seed = static_cast<std::uint64_t>(i);
    jobs.plans.push_back(plan);
    jobs.tickets.emplace_back();
    jobs.logs.push_back(world.submit(plan, &jobs.tickets.back()));
  }
  return jobs;
}

TEST_P(SchedulerTest, ReadsTheInstructionOfEachGroupOnceHoweverTheyAlternate) {
  for (const int sequences : {1, 2, 4, 9}) {
    for (const int groups : {1, 2, 3}) {
      for (const int chunk : {10, 64, 1000}) {
        SCOPED_TRACE(std::to_string(groups) + " groups, " + std::to_string(sequences) + " jobs at once, chunks of " +
                     std::to_string(chunk));
        WorldOptions sharing = options();
        sharing.sequences = sequences;
        sharing.prefixes = 3;
        sharing.pages = 3 * (sequences + 3);
        sharing.chunk = chunk;
        World world(sharing);
        const Interleaved jobs = submit_interleaved(world, groups, 24);
        world.run();
        for (std::size_t i = 0; i < jobs.logs.size(); ++i) {
          expect_answer(jobs.plans[i], *jobs.logs[i]);
          EXPECT_EQ(jobs.logs[i]->cached, i < static_cast<std::size_t>(groups) ? 0 : 150);
        }
        EXPECT_EQ(world.device().rows_of(RowKind::kPrompt), groups * 150 + 24 * 15);
      }
    }
  }
}

TEST_P(SchedulerTest, LeavesThePrefixesOfOthersAloneWhereThereAreMoreInstructionsThanPlaces) {
  WorldOptions sharing = options();
  sharing.prefixes = 2;
  World world(sharing);
  const Interleaved jobs = submit_interleaved(world, 4, 24);
  world.run();
  for (std::size_t i = 0; i < jobs.logs.size(); ++i) expect_answer(jobs.plans[i], *jobs.logs[i]);
  // The first two are kept for as long as there are jobs to use them.
  EXPECT_LE(world.device().rows_of(RowKind::kPrompt), (2 + 2 * 6) * 150 + 24 * 15);
  // When they are of no use any more, others have their places.
  const int rows = world.device().rows_of(RowKind::kPrompt);
  for (unsigned i = 0; i < 8; ++i) {
    JobPlan late = plan(1, i);
    late.text = joined(random_text(150, 1002 + i % 2), random_text(15, 200 + i));
    world.submit(late);
  }
  world.run();
  EXPECT_EQ(world.device().rows_of(RowKind::kPrompt) - rows, 2 * 150 + 8 * 15);
}

TEST_P(SchedulerTest, SharesAnInstructionAndWhatSomeHaveInCommonBehindIt) {
  WorldOptions sharing = options();
  sharing.prefixes = 4;
  sharing.window = 300;
  World world(sharing);
  const std::vector<TextToken> instruction = random_text(100, 1);
  std::vector<JobPlan> plans;
  std::vector<std::shared_ptr<const JobLog>> logs;
  for (unsigned i = 0; i < 24; ++i) {
    plans.push_back(plan(1, i));
    plans.back().text = joined(joined(instruction, random_text(90, 1000 + i % 3)), random_text(15, i));
    logs.push_back(world.submit(plans.back()));
  }
  world.run();
  for (std::size_t i = 0; i < logs.size(); ++i) {
    expect_answer(plans[i], *logs[i]);
    EXPECT_TRUE(i < 4 || logs[i]->cached == 190) << "job " << i << ": " << logs[i]->cached;
  }
  EXPECT_LE(world.device().rows_of(RowKind::kPrompt), 100 + 4 * 90 + 24 * 15);
}

TEST_P(SchedulerTest, LooksForWhatMostHaveInCommonNotForTheLongest) {
  World world(options());  // the window is short: what is kept can be used to its end alone
  const std::vector<TextToken> instruction = random_text(100, 1);
  std::vector<JobPlan> plans;
  std::vector<std::shared_ptr<const JobLog>> logs;
  for (unsigned i = 0; i < 12; ++i) {
    plans.push_back(plan(1, i));
    plans.back().text = joined(instruction, random_text(150, i == 7 ? 100 : 100 + i));  // one comes twice
    logs.push_back(world.submit(plans.back()));
  }
  world.run();
  for (std::size_t i = 0; i < logs.size(); ++i) {
    expect_answer(plans[i], *logs[i]);
    EXPECT_EQ(logs[i]->cached, i == 0 ? 0 : 100);
  }
}

TEST_P(SchedulerTest, GivesUpThePrefixesUsedLongestAgoAndNoMoreThanItMust) {
  WorldOptions small = options();
  small.sequences = 2;
  small.prefixes = 3;
  small.pages = 14;
  small.context = 640;
  World world(small);
  submit_interleaved(world, 3, 6, 128, 5);  // each prefix has two pages
  world.run();
  EXPECT_EQ(world.cache().free_pages(), 8);
  const auto cached_behind = [&](unsigned group) {
    JobPlan job = plan(1, 50);
    job.text = joined(random_text(128, 1000 + group), random_text(5, 50));
    const auto log = world.submit(job);
    world.run();
    expect_answer(job, *log);
    return log->cached;
  };
  EXPECT_EQ(cached_behind(0), 128);
  const JobPlan large = plan(10, 5, 10 * kPagePositions - 10 - 64);  // 9 pages: one prefix must go
  const auto log = world.submit(large);
  world.run();
  expect_answer(large, *log);
  EXPECT_EQ(world.cache().free_pages(), 10);
  EXPECT_EQ(cached_behind(0), 128);
  EXPECT_EQ(cached_behind(2), 128);
  EXPECT_EQ(cached_behind(1), 0) << "it was used longest ago";
}

TEST_P(SchedulerTest, KeepsPrefixesThatWouldNotMakeEnoughRoom) {
  WorldOptions small = options();
  small.sequences = 3;
  small.prefixes = 1;
  small.pages = 10;
  World world(small);
  const std::vector<TextToken> instruction = random_text(128, 1);
  const auto behind_instruction = [&](unsigned i, int max_tokens) {
    JobPlan job = plan(1, i, max_tokens);
    job.text = joined(instruction, random_text(5, i));
    return world.submit(job);
  };
  behind_instruction(1, 100);
  behind_instruction(2, 10);
  step(world, 30);
  // Seven pages are not free beside the first job's four, whether its prefix, whose pages it shares, is kept or not.
  const JobPlan large = plan(10, 5, 6 * kPagePositions);
  const auto log = world.submit(large);
  step(world, 5);
  EXPECT_EQ(log->starts, 0);
  world.run();
  expect_answer(large, *log);
  const auto last = behind_instruction(3, 10);
  world.run();
  EXPECT_EQ(last->cached, 128);
}

TEST_P(SchedulerTest, NeverMakesAJobWaitForTheMemoryOfAPrefix) {
  // Whatever is kept, a job is admitted as soon as it would be if nothing were.
  for (int pages = 7; pages < 24; ++pages) {
    for (const int length : {100, 200, 390}) {
      SCOPED_TRACE(std::to_string(pages) + " pages, a job of " + std::to_string(length));
      WorldOptions small = options();
      small.sequences = 3;
      small.prefixes = 3;
      small.pages = pages;
      World world(small);
      const Interleaved jobs = submit_interleaved(world, 3, 9);
      world.run();
      std::vector<std::pair<JobPlan, std::shared_ptr<const JobLog>>> late;
      for (unsigned i = 0; i < 3; ++i) {
        JobPlan job = plan(1, i);
        job.text = joined(random_text(90, 1000 + i), random_text(5, i));
        job.max_tokens = length - 95;
        late.emplace_back(job, world.submit(job));
      }
      step(world, 1);
      int room = pages;
      for (const auto& [job, log] : late) {
        room -= KvCache::pages_for(length);
        EXPECT_TRUE(room < 0 || log->starts == 1);
      }
      world.run();
      for (const auto& [job, log] : late) expect_answer(job, *log);
      for (std::size_t i = 0; i < jobs.logs.size(); ++i) expect_answer(jobs.plans[i], *jobs.logs[i]);
      world.scheduler().make_way();
      EXPECT_EQ(world.cache().free_pages(), pages);
    }
  }
}

// --- cancellation ---

TEST_P(SchedulerTest, EndsCancelledJobsInWhateverStateTheyAreBesideKeptPrefixes) {
  for (int steps = 0; steps < 40; ++steps) {
    for (unsigned which = 0; which < 12; ++which) {
      SCOPED_TRACE("job " + std::to_string(which) + " after " + std::to_string(steps) + " steps");
      WorldOptions few = options();
      few.sequences = 3;
      few.prefixes = 2;
      few.chunk = 40;
      World world(few);
      const Interleaved jobs = submit_interleaved(world, 2, 12, 100, 10);
      step(world, steps);
      const bool was_done = jobs.logs[which]->ends == 1;
      world.scheduler().cancel(jobs.tickets[which]);
      world.run();
      int cached = 0;
      for (std::size_t i = 0; i < jobs.logs.size(); ++i) {
        expect_answer(jobs.plans[i], *jobs.logs[i], i != which || was_done);
        cached += jobs.logs[i]->cached;
      }
      EXPECT_GE(cached, 9 * 100) << "a group whose reader is cancelled has another";
      world.scheduler().make_way();
      EXPECT_EQ(world.cache().free_pages(), world.device().kv_layout().pages);
    }
  }
}

TEST_P(SchedulerTest, EndsACancelledJobInWhateverStateItIs) {
  // The steps made before it is cancelled: waiting, reading, drawing, and near its end.
  for (int steps = 0; steps < 30; ++steps) {
    SCOPED_TRACE(std::to_string(steps) + " steps");
    WorldOptions few = options();
    few.sequences = 2;
    few.chunk = 10;
    World world(few);
    std::vector<JobPlan> plans;
    std::vector<std::shared_ptr<const JobLog>> logs;
    std::vector<Scheduler::Ticket> tickets(4);
    for (unsigned i = 0; i < 4; ++i) {
      plans.push_back(plan(25, i));
      logs.push_back(world.submit(plans.back(), &tickets[i]));
    }
    step(world, steps);
    for (std::size_t i : {1, 3}) {
      world.scheduler().cancel(tickets[i]);
      world.scheduler().cancel(tickets[i]);
    }
    const std::size_t tokens = logs[1]->tokens.size();
    const bool was_done = logs[1]->ends == 1;
    world.run();
    EXPECT_EQ(logs[1]->tokens.size(), tokens) << "a cancelled job gets no more tokens";
    expect_answer(plans[0], *logs[0]);
    expect_answer(plans[1], *logs[1], was_done);
    expect_answer(plans[2], *logs[2]);
    EXPECT_EQ(logs[3]->ends, 1);
    for (Scheduler::Ticket ticket : tickets) world.scheduler().cancel(ticket);
    EXPECT_FALSE(world.scheduler().step());
    EXPECT_EQ(logs[0]->ends, 1);
  }
}

TEST_P(SchedulerTest, LetsListenersCancelAndSubmit) {
  World world(options());
  Scheduler::Ticket first = 0;
  Scheduler::Ticket second = 0;
  const JobPlan added = plan(12, 9);
  std::shared_ptr<const JobLog> added_log;
  JobPlan plan_a = plan(20, 1, 30);
  plan_a.on_token = [&](int, const JobLog& log) {
    if (log.tokens.size() == 5) world.scheduler().cancel(second);
    if (log.tokens.size() == 9) world.scheduler().cancel(first);
    return Next::kGoOn;
  };
  JobPlan plan_b = plan(20, 2, 30);
  plan_b.on_end = [&](const JobLog&) { added_log = world.submit(added); };
  const auto a = world.submit(plan_a, &first);
  const auto b = world.submit(plan_b, &second);
  world.run();
  expect_answer(plan_a, *a, false);
  EXPECT_EQ(a->tokens.size(), 9u);
  expect_answer(plan_b, *b, false);
  ASSERT_NE(added_log, nullptr);
  expect_answer(added, *added_log);
}

TEST_P(SchedulerTest, EndsAJobWhoseListenerWantsNoMoreOfItsPrompt) {
  WorldOptions narrow = options();
  narrow.chunk = 10;
  World world(narrow);
  JobPlan job = plan(100, 1);
  job.on_read = [](const JobLog& log) { return log.reads.back() < 30; };
  const auto log = world.submit(job);
  world.run();
  EXPECT_EQ(log->reads, (std::vector<int>{10, 20, 30}));
  EXPECT_EQ(log->ends, 1);
  EXPECT_FALSE(log->is_complete);
  EXPECT_EQ(world.cache().free_pages(), world.device().kv_layout().pages);
}

TEST_P(SchedulerTest, CountsWhatAPromptTakesWhileItIsRead) {
  WorldOptions narrow = options();
  narrow.chunk = 10;
  World world(narrow);
  const auto log = world.submit(plan(25, 1));
  world.run();
  EXPECT_EQ(log->reads, (std::vector<int>{10, 20, 25}));
}

// --- what goes wrong ---

TEST_P(SchedulerTest, EndsOnlyTheJobWhoseListenerThrows) {
  enum class Where { kRead, kToken, kEnd };
  for (const Where where : {Where::kRead, Where::kToken, Where::kEnd}) {
    World world(options());
    const auto fail = [] { throw std::runtime_error("the listener's own"); };
    JobPlan bad = plan(20, 1);
    if (where == Where::kRead) bad.on_read = [&](const JobLog&) { return fail(), true; };
    if (where == Where::kToken) bad.on_token = [&](int, const JobLog&) { return fail(), Next::kGoOn; };
    if (where == Where::kEnd) bad.on_end = [&](const JobLog&) { fail(); };
    const JobPlan good = plan(20, 2);
    const auto before = world.submit(good);
    const auto log = world.submit(bad);
    const auto other_log = world.submit(bad);
    const auto behind = world.submit(good);
    int thrown = 0;
    for (bool goes_on = true; goes_on;) {
      try {
        goes_on = world.scheduler().step();
      } catch (const std::runtime_error&) {
        ++thrown;
      }
    }
    EXPECT_EQ(thrown, 1) << "both threw in one step, which can throw but once";
    EXPECT_EQ(log->ends, where == Where::kEnd ? 1 : 0) << "what has thrown is heard of no more";
    EXPECT_EQ(other_log->ends, log->ends);
    expect_answer(good, *before);
    expect_answer(good, *behind);
    EXPECT_EQ(world.cache().free_pages(), world.device().kv_layout().pages);
  }
}

TEST_P(SchedulerTest, TellsEveryCancelledJobOfItsEndEvenIfOneThrows) {
  WorldOptions few = options();
  few.sequences = 2;
  World world(few);
  std::vector<std::shared_ptr<const JobLog>> logs;
  std::vector<Scheduler::Ticket> tickets(6);
  for (unsigned i = 0; i < 6; ++i) {
    JobPlan job = plan(20, i, 50);
    job.on_end = [](const JobLog&) { throw std::runtime_error("the listener's own"); };
    logs.push_back(world.submit(job, &tickets[i]));
  }
  step(world, 5);
  for (Scheduler::Ticket ticket : tickets) world.scheduler().cancel(ticket);
  EXPECT_THROW(world.scheduler().step(), std::runtime_error);
  EXPECT_FALSE(world.scheduler().step());
  for (const auto& log : logs) EXPECT_EQ(log->ends, 1);
}

TEST_P(SchedulerTest, ForgetsAJobAtOnce) {
  World world(options());
  const int session = world.scheduler().open_session();
  const JobPlan other = plan(20, 2, 30);
  const auto other_log = world.submit(other);
  JobPlan job = plan(20, 1, 30);
  job.session = session;
  Scheduler::Ticket ticket = 0;
  const auto log = world.submit(job, &ticket);
  step(world, 6);
  world.scheduler().forget(ticket);
  EXPECT_EQ(log.use_count(), 1) << "the listener is gone";
  EXPECT_EQ(log->ends, 0);
  const auto again = world.submit(job);  // the session is free
  world.run();
  expect_answer(job, *again);
  expect_answer(other, *other_log);
}

TEST_P(SchedulerTest, GoesOnWithNewJobsAfterTheDeviceHasFailed) {
  for (const std::string_view call : {"embed", "attend", "logits", "sample", "finish", "copy_ring", "read_slots"}) {
    for (int when = 1; when < 12; ++when) {
      SCOPED_TRACE(std::string(call) + ", time " + std::to_string(when));
      WorldOptions narrow = options();
      narrow.chunk = 30;
      narrow.context = 400;
      World world(narrow);
      const int session = world.scheduler().open_session();
      JobPlan talk = plan(200, 50, 20);
      talk.session = session;
      world.submit(talk);
      world.run();

      const std::vector<TextToken> instruction = random_text(100, 1);
      std::vector<std::shared_ptr<const JobLog>> logs;
      for (unsigned i = 0; i < 6; ++i) {
        JobPlan job = plan(1, i);
        job.text = joined(instruction, random_text(10 + static_cast<int>(i), i));
        logs.push_back(world.submit(job));
      }
      JobPlan more = plan(1, 51, 20);
      more.session = session;
      more.text = joined(talk.text, random_text(150, 52));
      logs.push_back(world.submit(more));
      int calls = 0;
      world.device().on_call = [&](std::string_view made) {
        if (made == call && ++calls == when) throw Error("the device has failed");
      };
      bool has_failed = false;
      try {
        world.run();
      } catch (const Error&) {
        has_failed = true;
      }
      EXPECT_EQ(has_failed, calls >= when);
      world.device().on_call = nullptr;
      EXPECT_FALSE(world.scheduler().step()) << "nothing is left of what was under way";
      for (const auto& log : logs) EXPECT_EQ(log.use_count(), 1);

      const JobPlan fresh = plan(120, 60);
      const auto fresh_log = world.submit(fresh);
      const auto talk_log = world.submit(more);
      world.run();
      expect_answer(fresh, *fresh_log);
      expect_answer(more, *talk_log);
      world.scheduler().close_session(session);
      world.scheduler().make_way();
      EXPECT_EQ(world.cache().free_pages(), world.device().kv_layout().pages);
    }
  }
}

TEST_P(SchedulerTest, LetsOthersUseTheDeviceBetweenTwoSteps) {
  World world(options());
  const JobPlan job = plan(20, 1, 30);
  const auto log = world.submit(job);
  step(world, 5);
  world.scheduler().make_way();
  // Another's step, after which the device cannot go on from the tokens that it drew for the job.
  const KvCache::Id sequence = world.cache().create(10);
  Batch batch;
  batch.sequences.push_back(world.cache().extend(sequence, 1));
  batch.rows.push_back({.token = 3});
  world.device().embed(batch);
  world.device().mlp(batch, 0);
  world.device().finish(0);
  world.cache().remove(sequence);
  world.run();
  expect_answer(job, *log);
}

}  // namespace
}  // namespace gemma
