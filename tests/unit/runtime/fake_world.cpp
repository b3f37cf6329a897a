#include "unit/runtime/fake_world.h"

#include <gtest/gtest.h>

#include <random>
#include <utility>

namespace gemma {
namespace {

FakeOptions device_options(const WorldOptions& options) {
  FakeOptions fake;
  fake.kv = plan_kv_cache(options.window, options.context, options.sequences, KvType::kF32);
  fake.kv.rings = options.sequences + options.prefixes;
  if (options.pages > 0) fake.kv.pages = options.pages;
  fake.max_rows = options.chunk + options.sequences;
  fake.runs_ahead = options.runs_ahead;
  return fake;
}

class Recorder final : public JobListener {
 public:
  Recorder(std::shared_ptr<JobLog> log, JobPlan plan) : log_(std::move(log)), plan_(std::move(plan)) {}

  void on_start(int cached) override {
    ++log_->starts;
    log_->cached = cached;
  }

  bool on_read(int read, int total) override {
    EXPECT_EQ(log_->starts, 1);
    EXPECT_EQ(log_->ends, 0);
    EXPECT_EQ(total, static_cast<int>(plan_.text.size()));
    EXPECT_GT(read, log_->reads.empty() ? log_->cached : log_->reads.back());
    log_->reads.push_back(read);
    return !plan_.on_read || plan_.on_read(*log_);
  }

  Next on_token(const Output& output) override {
    EXPECT_EQ(log_->ends, 0) << "a token after the end";
    EXPECT_FALSE(log_->reads.empty());
    EXPECT_EQ(log_->reads.back(), static_cast<int>(plan_.text.size())) << "a token before the prompt is read";
    EXPECT_GE(output.token, 0) << "the device has not made this answer yet";
    log_->tokens.push_back(output.token);
    const Next next = plan_.on_token ? plan_.on_token(output.token, *log_) : Next::kGoOn;
    if (next == Next::kEndHere) log_->tokens.pop_back();
    return next;
  }

  void on_end(bool is_complete) override {
    ++log_->ends;
    log_->is_complete = is_complete;
    if (plan_.on_end) plan_.on_end(*log_);
  }

 private:
  std::shared_ptr<JobLog> log_;
  JobPlan plan_;
};

}  // namespace

World::World(const WorldOptions& options)
    : device_(device_options(options)),
      cache_(device_),
      scheduler_(config_, device_, cache_,
                 {.parallel = options.sequences,
                  .chunk = options.chunk,
                  .mixed_chunk = options.mixed_chunk > 0 ? options.mixed_chunk : options.chunk,
                  .checkpoint_bytes = options.checkpoint_bytes}) {}

std::shared_ptr<const JobLog> World::submit(const JobPlan& plan, Scheduler::Ticket* ticket) {
  auto log = std::make_shared<JobLog>();
  Job job;
  job.text = plan.text;
  job.max_tokens = plan.max_tokens;
  job.wanted.sampling = Sampling{.repeat_penalty = plan.repeat_penalty, .seed = plan.seed};
  job.session = plan.session;
  job.listener = std::make_unique<Recorder>(log, plan);
  const Scheduler::Ticket given = scheduler_.submit(std::move(job));
  if (ticket != nullptr) *ticket = given;
  return log;
}

void World::run() {
  constexpr int kMostSteps = 100'000;
  for (int i = 0; i < kMostSteps; ++i) {
    if (!scheduler_.step()) return;
  }
  ADD_FAILURE() << "the scheduler never ends";
}

std::vector<TextToken> random_text(int size, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<TextToken> text;
  for (int i = 0; i < size; ++i) text.push_back({static_cast<int>(random() % FakeDevice::kVocab), RowKind::kPrompt});
  return text;
}

std::vector<TextToken> joined(std::vector<TextToken> text, const std::vector<TextToken>& more) {
  text.insert(text.end(), more.begin(), more.end());
  return text;
}

std::vector<TextToken> answered(std::vector<TextToken> text, const std::vector<int>& answer) {
  for (int token : answer) text.push_back({token, RowKind::kGenerated});
  return text;
}

std::vector<int> whole_answer(const JobPlan& plan) {
  std::vector<TextToken> text = plan.text;
  std::vector<int> answer;
  for (int i = 0; i < plan.max_tokens; ++i) {
    answer.push_back(drawn_token(text, plan.seed));
    text.push_back({answer.back(), RowKind::kGenerated});
  }
  return answer;
}

}  // namespace gemma
