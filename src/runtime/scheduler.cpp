#include "runtime/scheduler.h"

#include <algorithm>
#include <cassert>
#include <exception>
#include <iterator>
#include <span>
#include <string>
#include <utility>

#include "gemma/error.h"
#include "runtime/transformer.h"

namespace gemma {
namespace {

/// Waiting jobs that are looked at for what they have in common with the first.
constexpr std::size_t kLookAhead = 64;

/// Rows of earlier answers that are read again in one step: a GPU takes those of one answer one after the other.
constexpr int kRereadRows = 64;

int size_of(const std::vector<TextToken>& text) { return static_cast<int>(text.size()); }

/// Makes calls one after the other, even if one throws: what one listener throws must not cost the others what they
/// wait for.
class Attempts {
 public:
  /// @return whether the call did not throw
  template <class Call>
  bool make(const Call& call) {
    try {
      call();
      return true;
    } catch (...) {
      if (!thrown_) thrown_ = std::current_exception();
      return false;
    }
  }

  /// Throws what the first call that threw has thrown.
  void rethrow() const {
    if (thrown_) std::rethrow_exception(thrown_);
  }

 private:
  std::exception_ptr thrown_;
};

}  // namespace

struct Scheduler::Active {
  Ticket ticket = 0;
  Job job;
  std::vector<TextToken> text;  // prompt, and the answer as far as it is known
  int prompt_size = 0;
  int limit = 0;  // of the text's size
  KvCache::Id sequence = 0;
  bool is_drawing = false;  // the prompt has been read
  bool is_cancelled = false;
};

struct Scheduler::Session {
  std::vector<TextToken> text;  // what is in the cache
};

struct Scheduler::Step {
  /// What a job has in the step.
  struct Part {
    Active* job;  // nullptr if it has ended since
    Ticket ticket;
    int length;  // of its sequence after the step
    int output;  // index of the answer, or -1
  };

  std::vector<Part> parts;
  std::vector<Output> answers;
  int calls = 0;         // of Device::sample
  bool is_pure = false;  // nothing but one token for each job, and still what the device has done last
};

Scheduler::Scheduler(const Config& config, Device& device, KvCache& cache, const SchedulerLimits& limits)
    : config_(config),
      device_(device),
      cache_(cache),
      limits_(limits),
      prefixes_(cache, device.kv_layout().rings - limits.parallel) {
  assert(limits.parallel >= 1 && limits.parallel <= device.kv_layout().rings);
}

Scheduler::~Scheduler() {
  try {
    device_.finish(0);  // nothing may write to the answers any more
  } catch (const Error&) {
    // Whatever is wrong with the device shows again when it is used next.
  }
}

// --- jobs ---

Scheduler::Ticket Scheduler::submit(Job job) {
  assert(!job.text.empty() && job.max_tokens >= 0);
  const int limit = size_of(job.text) + job.max_tokens;
  assert(limit <= device_.kv_layout().context);
  if (job.session) {
    if (!sessions_.contains(*job.session)) throw Error("there is no such session");
    if (is_busy(*job.session)) throw Error("the session is busy with another request");
  } else if (job.max_tokens > 0 && !fits_beside(static_cast<int>(sessions_.size()), limit)) {
    throw Error("the cache has no room for another request beside the open sessions");
  }
  auto active = std::make_unique<Active>();
  active->ticket = next_ticket_++;
  active->text = job.text;
  active->prompt_size = size_of(job.text);
  active->limit = limit;
  active->job = std::move(job);
  waiting_.push_back(std::move(active));
  return waiting_.back()->ticket;
}

void Scheduler::cancel(Ticket ticket) {
  for (auto& job : active_) job->is_cancelled |= job->ticket == ticket;
  for (auto& job : waiting_) job->is_cancelled |= job->ticket == ticket;
}

void Scheduler::forget(Ticket ticket) {
  const auto is_it = [ticket](const auto& job) { return job->ticket == ticket; };
  std::erase_if(waiting_, is_it);
  const auto job = std::find_if(active_.begin(), active_.end(), is_it);
  if (job == active_.end()) return;
  (*job)->job.listener.reset();
  end(**job, false);
}

void Scheduler::end_without_step() {
  // Listeners may submit and cancel jobs: what they change is looked at in the next step.
  std::vector<Active*> running;
  for (const auto& job : active_) {
    if (job->is_cancelled) running.push_back(job.get());
  }
  std::vector<std::unique_ptr<Active>> ended;
  for (auto& job : waiting_) {
    if (job->is_cancelled || job->limit == job->prompt_size) ended.push_back(std::move(job));
  }
  std::erase(waiting_, nullptr);
  Attempts attempts;
  for (Active* job : running) attempts.make([&] { end(*job, false); });
  for (const auto& job : ended) attempts.make([&] { job->job.listener->on_end(!job->is_cancelled); });
  attempts.rethrow();
}

void Scheduler::end(Active& job, bool is_complete) {
  for (Step& step : steps_) {
    for (Step::Part& part : step.parts) {
      if (part.job == &job) part.job = nullptr;
    }
  }
  prefixes_.end_reading(job.ticket);
  if (job.job.session) {
    // A step that ran ahead has left a token in the cache that is not part of the text.
    const int length = std::min(size_of(job.text), cache_.length(job.sequence));
    cache_.truncate(job.sequence, length);
    job.text.resize(static_cast<std::size_t>(length));
    sessions_.at(*job.job.session).text = std::move(job.text);
  } else {
    cache_.remove(job.sequence);
  }
  const auto place =
      std::find_if(active_.begin(), active_.end(), [&](const auto& other) { return other.get() == &job; });
  const std::unique_ptr<Active> ended = std::move(*place);
  active_.erase(place);
  if (ended->job.listener) ended->job.listener->on_end(is_complete);
}

/// After the device has failed: nothing that was under way can be gone on with.
void Scheduler::abandon() {
  try {
    device_.finish(0);
  } catch (const Error&) {
    // It is the error that brought us here, or follows from it.
  }
  steps_.clear();
  const auto clear_session = [this](int session) {
    cache_.truncate(session, 0);
    sessions_.at(session).text.clear();
  };
  for (const auto& job : active_) {
    if (job->job.session) {
      clear_session(*job->job.session);
    } else {
      cache_.remove(job->sequence);
    }
  }
  // One of them may just have been starting.
  for (const auto& job : waiting_) {
    if (job->job.session) clear_session(*job->job.session);
  }
  active_.clear();
  waiting_.clear();
  prefixes_.drop_all();
}

// --- sessions ---

int Scheduler::open_session() {
  const int context = device_.kv_layout().context;
  const int open = static_cast<int>(sessions_.size());
  if (open + active_without_session() >= limits_.parallel) {
    throw Error("no room for another session: " + std::to_string(open) + " are open, and " +
                std::to_string(active_without_session()) + " other requests are worked on");
  }
  const bool leaves_room = std::all_of(waiting_.begin(), waiting_.end(), [&](const auto& job) {
    return job->job.session || fits_beside(open + 1, job->limit);
  });
  if (!leaves_room) throw Error("no room for another session beside the requests that wait");
  prefixes_.make_room(KvCache::pages_for(context));
  const int sequence = cache_.create(context);
  sessions_.emplace(sequence, Session{});
  return sequence;
}

void Scheduler::close_session(int session) {
  if (!sessions_.contains(session)) throw Error("there is no such session");
  if (is_busy(session)) throw Error("the session is busy with a request");
  cache_.remove(session);
  sessions_.erase(session);
}

bool Scheduler::fits_beside(int sessions, int max_length) const {
  const KvLayout& layout = device_.kv_layout();
  return sessions < limits_.parallel &&
         KvCache::pages_for(max_length) <= layout.pages - sessions * KvCache::pages_for(layout.context);
}

int Scheduler::active_without_session() const {
  return static_cast<int>(
      std::count_if(active_.begin(), active_.end(), [](const auto& job) { return !job->job.session; }));
}

bool Scheduler::is_busy(int session) const {
  const auto uses_it = [session](const auto& job) { return job->job.session == session; };
  return std::any_of(active_.begin(), active_.end(), uses_it) || std::any_of(waiting_.begin(), waiting_.end(), uses_it);
}

void Scheduler::trim_checkpoints() {
  for (auto session = sessions_.begin(); session != sessions_.end(); ++session) {
    while (cache_.checkpoint_bytes() > limits_.checkpoint_bytes && cache_.drop_oldest_checkpoint(session->first)) {
    }
  }
}

// --- admission ---

void Scheduler::admit() {
  while (!waiting_.empty() && start(*waiting_.front())) {
    active_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
  assert(!active_.empty() || waiting_.empty());  // each fits into an idle cache
}

bool Scheduler::start(Active& job) {
  const bool has_started = job.job.session ? start_in_session(job) : start_in_new_sequence(job);
  if (has_started) job.job.listener->on_start(cache_.length(job.sequence));
  return has_started;
}

bool Scheduler::start_in_session(Active& job) {
  job.sequence = *job.job.session;
  // The last token of the prompt must be read in any case: the answer's first follows from it.
  const int common = std::min(common_length(sessions_.at(job.sequence).text, job.text), job.prompt_size - 1);
  const int length = cache_.nearest_length(job.sequence, common);
  cache_.truncate(job.sequence, length);
  if (length > 0) cache_.checkpoint(job.sequence, length);
  return true;
}

bool Scheduler::start_in_new_sequence(Active& job) {
  if (active_without_session() + static_cast<int>(sessions_.size()) >= limits_.parallel) return false;

  const Prefixes::Match known = prefixes_.find(job.text);
  if (known.length > 0 && !known.sequence) return false;  // it will have been read soon
  const auto fork_pages = [&] { return cache_.pages_for_fork(*known.sequence, known.length, job.limit); };
  if (known.length > 0 && prefixes_.make_room(fork_pages(), known.sequence)) {
    job.sequence = prefixes_.fork(known, job.limit);
  } else if (prefixes_.make_room(KvCache::pages_for(job.limit))) {
    job.sequence = cache_.create(job.limit);
  } else {
    return false;
  }
  prefixes_.plan(job.ticket, job.text, cache_.length(job.sequence), behind_first());
  return true;
}

std::vector<Prefixes::Text> Scheduler::behind_first() const {
  std::vector<Prefixes::Text> texts;
  const std::size_t end = std::min(waiting_.size(), kLookAhead);
  for (std::size_t i = 1; i < end; ++i) {
    if (!waiting_[i]->job.session) texts.emplace_back(waiting_[i]->text);
  }
  return texts;
}

// --- steps ---

void Scheduler::make_way() {
  prefixes_.drop_kept();
  for (Step& step : steps_) step.is_pure = false;
}

bool Scheduler::step() {
  end_without_step();
  try {
    admit();
    if (steps_.empty() && !active_.empty()) begin_step();
    if (steps_.size() == 1 && can_continue(steps_.front())) continue_step();
  } catch (...) {
    abandon();
    throw;
  }
  if (!steps_.empty()) finish_step();
  if (active_.empty() && !steps_.empty()) {
    device_.finish(0);
    steps_.clear();
  }
  return !active_.empty() || !waiting_.empty();
}

void Scheduler::begin_step() {
  Step step;
  Batch batch;
  int drawing = 0;
  for (const auto& job : active_) {
    if (!job->is_drawing) continue;
    add_rows(step, batch, *job, 1);
    ++drawing;
  }
  step.is_pure = drawing == static_cast<int>(active_.size());

  int prompt_rows = std::min(drawing > 0 ? limits_.mixed_chunk : limits_.chunk, device_.max_rows() - drawing);
  int reread_rows = std::min(kRereadRows, device_.max_generated_rows() - drawing);
  for (const auto& job : active_) {
    if (job->is_drawing) continue;
    const int length = cache_.length(job->sequence);
    const RowKind kind = job->text[static_cast<std::size_t>(length)].kind;
    const auto next = job->text.begin() + length;
    const auto run_end = std::find_if(next, job->text.end(), [kind](const TextToken& t) { return t.kind != kind; });
    int rows = static_cast<int>(run_end - next);
    if (const auto stop = prefixes_.planned_length(job->ticket)) rows = std::min(rows, *stop - length);
    rows = std::min(rows, kind == RowKind::kPrompt ? prompt_rows : std::min(prompt_rows, reread_rows));
    if (rows <= 0) continue;
    prompt_rows -= rows;
    if (kind == RowKind::kGenerated) reread_rows -= rows;
    add_rows(step, batch, *job, rows);
  }
  begin(std::move(step), std::move(batch));
}

void Scheduler::add_rows(Step& step, Batch& batch, Active& job, int rows) {
  const int length = cache_.length(job.sequence);
  SequenceRows sequence = cache_.extend(job.sequence, rows);
  sequence.first_row = static_cast<int>(batch.rows.size());
  const int index = static_cast<int>(batch.sequences.size());
  batch.sequences.push_back(sequence);
  for (int position = length; position < length + rows; ++position) {
    // A token that is not known yet is the one that the step before draws.
    const bool is_known = position < size_of(job.text);
    const TextToken token =
        is_known ? job.text[static_cast<std::size_t>(position)] : TextToken{kSampledToken, RowKind::kGenerated};
    batch.rows.push_back({.token = token.id, .position = position, .sequence = index, .kind = token.kind});
  }
  int output = -1;
  if (length + rows >= size_of(job.text)) {
    output = static_cast<int>(batch.outputs.size());
    batch.outputs.push_back(job.job.wanted);
    batch.outputs.back().row = static_cast<int>(batch.rows.size()) - 1;
  }
  step.parts.push_back({&job, job.ticket, length + rows, output});
}

void Scheduler::begin(Step step, Batch batch) {
  // The tokens that the repeat penalty looks at; where there is none, none are sent.
  std::vector<std::vector<int>> recent(batch.outputs.size());
  for (const Step::Part& part : step.parts) {
    if (part.output < 0 || part.job->job.wanted.sampling->repeat_penalty == 1.0f) continue;
    const auto newest = std::span(part.job->text).last(std::min<std::size_t>(part.job->text.size(), kRepeatWindow));
    std::vector<int>& ids = recent[static_cast<std::size_t>(part.output)];
    for (const TextToken& token : newest) ids.push_back(token.id);
    batch.outputs[static_cast<std::size_t>(part.output)].recent = ids;
  }
  const int at_once = device_.max_logit_rows();
  step.calls = (static_cast<int>(batch.outputs.size()) + at_once - 1) / at_once;
  step.answers.resize(batch.outputs.size());
  steps_.push_back(std::move(step));
  trim_checkpoints();
  begin_forward(config_, device_, batch, steps_.back().answers);
}

bool Scheduler::can_continue(const Step& step) const {
  if (!device_.runs_ahead() || !step.is_pure || step.calls != 1 || step.parts.size() != active_.size()) return false;
  return std::all_of(step.parts.begin(), step.parts.end(), [](const Step::Part& part) {
    return part.job != nullptr && size_of(part.job->text) + 1 < part.job->limit;
  });
}

void Scheduler::continue_step() {
  Step step;
  Batch batch;
  step.is_pure = true;
  for (const Step::Part& part : steps_.front().parts) add_rows(step, batch, *part.job, 1);
  begin(std::move(step), std::move(batch));
}

void Scheduler::finish_step() {
  try {
    device_.finish(steps_.size() == 2 ? steps_.back().calls : 0);
    for (const Step::Part& part : steps_.front().parts) {
      if (part.job != nullptr && !part.job->is_drawing) after_reading(*part.job);
    }
  } catch (...) {
    abandon();
    throw;
  }
  const Step step = std::move(steps_.front());
  steps_.pop_front();
  Attempts attempts;
  for (const Step::Part& part : step.parts) {
    if (part.job == nullptr) continue;
    const Output* output = part.output < 0 ? nullptr : &step.answers[static_cast<std::size_t>(part.output)];
    if (!attempts.make([&] { take_results(*part.job, part.length, output); })) forget(part.ticket);
  }
  attempts.rethrow();
}

void Scheduler::take_results(Active& job, int length, const Output* output) {
  using Next = JobListener::Next;
  JobListener& listener = *job.job.listener;
  if (!job.is_drawing) {
    if (!listener.on_read(length, job.prompt_size)) return end(job, false);
    if (output == nullptr) return;
    job.is_drawing = true;
  }
  const Next next = listener.on_token(*output);
  if (next != Next::kEndHere) job.text.push_back({output->token, RowKind::kGenerated});
  if (next != Next::kGoOn || size_of(job.text) == job.limit) end(job, true);
}

void Scheduler::after_reading(Active& job) {
  const int length = cache_.length(job.sequence);
  prefixes_.after_reading(job.ticket, job.sequence);
  // From before the prompt's last token, another answer to the same prompt can be made.
  const int retry = job.prompt_size - 1;
  if (job.job.session && length == job.prompt_size && retry > 0 && cache_.can_truncate(job.sequence, retry)) {
    cache_.checkpoint(job.sequence, retry);
  }
}

}  // namespace gemma
