#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "device/device.h"
#include "model/config.h"
#include "runtime/scheduler.h"

namespace gemma {

/// Two layers, one of each kind: what a FakeDevice is driven with.
Config fake_config();

struct FakeOptions {
  KvLayout kv;
  int max_rows = 1;
  int max_generated_rows = 0;  ///< 0: max_rows
  int max_logit_rows = 1000;
  bool runs_ahead = false;
};

/// A device without arithmetic and without time. In place of keys and values it keeps which token they would be of, and
/// what came before it; a row that would attend to anything but its own sequence's past fails the test, as does a batch
/// that breaks the contract of device.h. The token that it draws is a hash of all that the row sees, of the seed and of
/// the position: `drawn_token`.
class FakeDevice final : public Device {
 public:
  static constexpr int kVocab = 211;

  /// What one step had in it.
  struct StepLog {
    struct Part {
      int ring = 0;
      int position = 0;  ///< of the first row
      int rows = 0;
      RowKind kind = RowKind::kPrompt;
      bool is_answered = false;
    };
    std::vector<Part> parts;
    bool is_ahead = false;  ///< given out before the answers of the step before were looked at

    int rows_of(RowKind kind) const;
  };

  explicit FakeDevice(FakeOptions options);

  /// Called with the name of each of the device's functions; what it throws, that function throws.
  std::function<void(std::string_view call)> on_call;

  const std::vector<StepLog>& steps() const { return steps_; }
  int rows_of(RowKind kind) const;  ///< of all steps

  std::string description() const override { return "a fake"; }
  int max_rows() const override { return options_.max_rows; }
  int max_generated_rows() const override { return options_.max_generated_rows; }
  int max_logit_rows() const override { return options_.max_logit_rows; }
  const KvLayout& kv_layout() const override { return options_.kv; }

  void embed(const Batch& batch) override;
  void qkv(const Batch& batch, int layer) override;
  void attend(const Batch& batch, int layer) override;
  void attention_out(const Batch& batch, int layer) override;
  void mlp(const Batch& batch, int layer) override;
  void logits(const Batch& batch, int first, int count) override;
  void sample(const Batch& batch, int first, int count, std::span<Output> answers) override;
  bool runs_ahead() const override { return options_.runs_ahead; }
  void finish(int calls_ahead) override;

  void copy_ring(int from, int to) override;
  void copy_page(int from, int to) override;
  std::size_t slot_bytes() const override;
  void read_slots(int ring, int slot, int count, std::span<std::byte> out) override;
  void write_slots(int ring, int slot, int count, std::span<const std::byte> bytes) override;

 private:
  /// What stands for the keys and values of one position.
  struct Cell {
    int position = -1;
    int token = 0;
    std::uint64_t past = 0;  // a hash of all tokens up to this one

    friend bool operator==(const Cell&, const Cell&) = default;
  };
  using Page = std::vector<Cell>;
  /// A row whose answer the next step may go on from.
  struct Drawn {
    int ring = 0;
    int position = 0;
    int token = 0;
  };
  struct Pending {
    std::span<Output> answers;
    std::vector<Output> outputs;
  };

  void call(std::string_view name) const;
  void check(const Batch& batch) const;
  int token_of(const Batch& batch, const Row& row) const;
  Cell& in_page(const SequenceRows& sequence, int position);
  Cell& in_ring(int ring, int position);
  void see(const SequenceRows& sequence, int position);

  FakeOptions options_;
  std::vector<std::vector<Cell>> rings_;  // [rings][ring_slots]
  std::vector<Page> pages_;
  std::vector<Cell> rows_;                // of the present step
  std::vector<int> history_;              // tokens of the present row's sequence
  std::vector<std::vector<int>> recent_;  // of each row: the newest tokens up to it
  std::vector<Drawn> drawn_, newly_drawn_;
  std::pair<int, int> logits_made_;
  std::deque<Pending> pending_;
  std::vector<StepLog> steps_;
};

/// The token that follows a text, as a FakeDevice draws it.
int drawn_token(std::span<const TextToken> text, std::uint64_t seed);

}  // namespace gemma
