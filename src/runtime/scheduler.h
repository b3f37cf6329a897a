#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "device/device.h"
#include "model/config.h"
#include "runtime/kv_cache.h"
#include "runtime/prefixes.h"
#include "runtime/text_token.h"

namespace gemma {

/// Hears of a job as it goes on. It may submit and cancel jobs.
class JobListener {
 public:
  virtual ~JobListener() = default;

  /// The job has been admitted. @param cached  tokens of its prompt that need not be read
  virtual void on_start(int cached) = 0;

  /// `read` of the prompt's `total` tokens are in the cache; with read == total the first token of the answer is known,
  /// and comes next. @return whether to go on.
  virtual bool on_read(int read, int total) = 0;

  /// What becomes of an answer after one of its tokens.
  enum class Next {
    kGoOn,
    kEnd,      ///< the token is the answer's last
    kEndHere,  ///< the token is not part of the answer: it is a stop token
  };
  virtual Next on_token(const Output& output) = 0;

  /// The last call. @param is_complete  false if the job was cancelled, or a callback ended it while it was reading
  virtual void on_end(bool is_complete) = 0;
};

/// An answer to be made.
struct Job {
  std::vector<TextToken> text;  ///< the prompt, not empty
  int max_tokens = 1;           ///< of the answer, at least 0; prompt and answer fit into the context
  OutputRow wanted;             ///< of every token of the answer; row and recent tokens aside
  std::optional<int> session;   ///< the sequence to go on from, and to leave the text in
  std::unique_ptr<JobListener> listener;
};

/// How much is worked on at once.
struct SchedulerLimits {
  int parallel = 1;                  ///< jobs, and open sessions; rings beyond them keep what prompts share
  int chunk = 1;                     ///< rows of prompts in a step
  int mixed_chunk = 1;               ///< the same in steps that also make tokens, which must not wait for long
  std::size_t checkpoint_bytes = 0;  ///< that sessions may hold aside to go back
};

/// Decides which rows go through the model together: continuous batching.
///
/// A step has one row for every answer that is being made, and as many prompt rows as the limits allow, of the jobs
/// that were submitted first. A job is admitted, in the order of submission, when the cache has room for it to its
/// longest answer, so one that has begun never waits again. What a job has in common with those that wait behind it is
/// kept when it has been read, and they are forked from it: Prefixes.
///
/// Where the device runs ahead, the step after the present one is given out before the present one's tokens are looked
/// at, if it has the same answers in it.
class Scheduler {
 public:
  using Ticket = std::uint64_t;

  /// @param device, cache  must outlive this.
  Scheduler(const Config& config, Device& device, KvCache& cache, const SchedulerLimits& limits);
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  /// @throws Error if its session is busy, or if even an idle cache has no room for it beside the open sessions.
  Ticket submit(Job job);

  /// The job ends with the next step, before it gets another token.
  void cancel(Ticket ticket);

  /// The job ends now, and its listener is gone without hearing of it. Not to be called by that listener.
  void forget(Ticket ticket);

  /// To be called before anybody else uses device and cache between two steps: gives up what is kept only because it
  /// may be of use.
  void make_way();

  /// @return whether there is more to do.
  bool step();

  /// A sequence that stays when a job on it ends. What a job's prompt has in common with its text is not read again;
  /// going back to a point where a prompt or an answer ended is always possible within `checkpoint_bytes`.
  /// @throws Error if there is no room for a sequence of the context's length, now or beside a job that waits.
  int open_session();
  void close_session(int session);  ///< @throws Error if it is busy

 private:
  struct Active;
  struct Session;
  struct Step;

  void admit();
  bool start(Active& job);
  bool start_in_session(Active& job);
  bool start_in_new_sequence(Active& job);
  std::vector<Prefixes::Text> behind_first() const;  // texts that wait, as far as it is worth looking
  void end(Active& job, bool is_complete);
  void end_without_step();  // jobs that are cancelled, or want no tokens
  void abandon();

  void begin_step();
  void continue_step();
  bool can_continue(const Step& step) const;
  void finish_step();
  void add_rows(Step& step, Batch& batch, Active& job, int rows);
  void begin(Step step, Batch batch);
  void take_results(Active& job, int length, const Output* output);
  void after_reading(Active& job);
  void trim_checkpoints();
  bool fits_beside(int sessions, int max_length) const;
  int active_without_session() const;
  bool is_busy(int session) const;

  const Config& config_;
  Device& device_;
  KvCache& cache_;
  SchedulerLimits limits_;
  Ticket next_ticket_ = 1;
  std::deque<std::unique_ptr<Active>> waiting_;
  std::vector<std::unique_ptr<Active>> active_;  // in the order of submission
  std::map<int, Session> sessions_;              // by their sequence
  Prefixes prefixes_;
  std::deque<Step> steps_;  // under way: at most two
};

}  // namespace gemma
