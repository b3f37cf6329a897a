#include "unit/runtime/fake_device.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "device/attention_mask.h"
#include "support/small_model.h"

namespace gemma {
namespace {

std::uint64_t mix(std::uint64_t a, std::uint64_t b) {
  std::uint64_t x = a * 0x9e3779b97f4a7c15u + b + 0x632be59bd9b4e019u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

std::uint64_t past_with(std::uint64_t past, int token, RowKind kind) {
  return mix(past, 2 * static_cast<std::uint64_t>(token) + (kind == RowKind::kGenerated ? 1 : 0));
}

int drawn_after(std::uint64_t past, std::uint64_t seed, int position) {
  return static_cast<int>(mix(mix(past, seed), static_cast<std::uint64_t>(position)) % FakeDevice::kVocab);
}

}  // namespace

Config fake_config() {
  Config config = small_config();
  config.layers = alternating_layers(2);
  return config;
}

int drawn_token(std::span<const TextToken> text, std::uint64_t seed) {
  std::uint64_t past = 0;
  for (const TextToken& token : text) past = past_with(past, token.id, token.kind);
  return drawn_after(past, seed, static_cast<int>(text.size()) - 1);
}

int FakeDevice::StepLog::rows_of(RowKind kind) const {
  int rows = 0;
  for (const Part& part : parts) rows += part.kind == kind ? part.rows : 0;
  return rows;
}

FakeDevice::FakeDevice(FakeOptions options) : options_(options) {
  if (options_.max_generated_rows == 0) options_.max_generated_rows = options_.max_rows;
  rings_.assign(static_cast<std::size_t>(options_.kv.rings),
                std::vector<Cell>(static_cast<std::size_t>(options_.kv.ring_slots)));
  pages_.assign(static_cast<std::size_t>(options_.kv.pages), Page(kPagePositions));
}

int FakeDevice::rows_of(RowKind kind) const {
  int rows = 0;
  for (const StepLog& step : steps_) rows += step.rows_of(kind);
  return rows;
}

void FakeDevice::call(std::string_view name) const {
  if (on_call) on_call(name);
}

void FakeDevice::check(const Batch& batch) const {
  const int rows = static_cast<int>(batch.rows.size());
  EXPECT_GE(rows, 1) << "a step with nothing to do";
  EXPECT_LE(rows, options_.max_rows);
  const auto generated = std::count_if(batch.rows.begin(), batch.rows.end(),
                                       [](const Row& row) { return row.kind == RowKind::kGenerated; });
  EXPECT_LE(generated, options_.max_generated_rows);

  int next_row = 0;
  std::set<int> rings, written_pages;
  for (std::size_t i = 0; i < batch.sequences.size(); ++i) {
    const SequenceRows& sequence = batch.sequences[i];
    EXPECT_EQ(sequence.first_row, next_row) << "rows of a sequence are not neighbours";
    EXPECT_GE(sequence.rows, 1);
    EXPECT_TRUE(rings.insert(sequence.ring).second) << "two sequences in one ring";
    ASSERT_TRUE(sequence.ring >= 0 && sequence.ring < options_.kv.rings);
    ASSERT_GE(static_cast<int>(sequence.pages.size()) * kPagePositions, sequence.position + sequence.rows);
    for (int page : sequence.pages) ASSERT_TRUE(page >= 0 && page < options_.kv.pages);
    for (int page = sequence.position / kPagePositions; page * kPagePositions < sequence.position + sequence.rows;
         ++page) {
      EXPECT_TRUE(written_pages.insert(sequence.pages[static_cast<std::size_t>(page)]).second)
          << "two sequences write to one page";
    }
    next_row += sequence.rows;
    ASSERT_LE(next_row, rows);
    for (int row = sequence.first_row; row < next_row; ++row) {
      const Row& r = batch.rows[static_cast<std::size_t>(row)];
      EXPECT_EQ(r.sequence, static_cast<int>(i));
      EXPECT_EQ(r.position, sequence.position + row - sequence.first_row);
      EXPECT_LT(r.position, options_.kv.context);
      EXPECT_EQ(r.kind, batch.rows[static_cast<std::size_t>(sequence.first_row)].kind) << "kinds mixed in a sequence";
      EXPECT_TRUE((r.token >= 0 && r.token < kVocab) || r.token == kSampledToken);
    }
  }
  EXPECT_EQ(next_row, rows) << "rows of no sequence";

  int last = -1;
  for (const OutputRow& output : batch.outputs) {
    EXPECT_GT(output.row, last) << "outputs are not in ascending order";
    last = output.row;
  }
  EXPECT_LT(last, rows);

  const auto is_drawn = [](const Row& row) { return row.token == kSampledToken; };
  if (std::none_of(batch.rows.begin(), batch.rows.end(), is_drawn)) return;
  EXPECT_TRUE(options_.runs_ahead);
  EXPECT_TRUE(std::all_of(batch.rows.begin(), batch.rows.end(), is_drawn)) << "known and drawn tokens in one step";
  ASSERT_EQ(batch.rows.size(), drawn_.size()) << "the step before had other sequences";
  ASSERT_EQ(batch.sequences.size(), drawn_.size());
  for (std::size_t i = 0; i < drawn_.size(); ++i) {
    EXPECT_EQ(batch.sequences[i].ring, drawn_[i].ring) << "the step before had other sequences";
    EXPECT_EQ(batch.rows[i].position, drawn_[i].position + 1);
    EXPECT_EQ(batch.rows[i].kind, RowKind::kGenerated);
  }
}

int FakeDevice::token_of(const Batch& batch, const Row& row) const {
  if (row.token != kSampledToken) return row.token;
  const auto index = static_cast<std::size_t>(&row - batch.rows.data());
  return index < drawn_.size() ? drawn_[index].token : 0;
}

FakeDevice::Cell& FakeDevice::in_page(const SequenceRows& sequence, int position) {
  const int page = sequence.pages[static_cast<std::size_t>(position / kPagePositions)];
  return pages_[static_cast<std::size_t>(page)][static_cast<std::size_t>(position % kPagePositions)];
}

FakeDevice::Cell& FakeDevice::in_ring(int ring, int position) {
  return rings_[static_cast<std::size_t>(ring)][static_cast<std::size_t>(position % options_.kv.ring_slots)];
}

/// What the row at `position` attends to: all earlier positions through the pages, those in the window through the
/// ring.
void FakeDevice::see(const SequenceRows& sequence, int position) {
  history_.clear();
  for (int earlier = 0; earlier < position; ++earlier) {
    const Cell& cell = in_page(sequence, earlier);
    ASSERT_EQ(cell.position, earlier) << "a page has another position's keys";
    history_.push_back(cell.token);
    if (earlier >= first_visible(position, options_.kv.window)) {
      ASSERT_EQ(in_ring(sequence.ring, earlier).position, earlier) << "a ring has lost a key that the window needs";
      ASSERT_TRUE(in_ring(sequence.ring, earlier) == cell) << "ring and pages differ at position " << earlier;
    }
    if (earlier == 0) continue;
    // Both kinds are possible, and told apart by the hash alone.
    const std::uint64_t past = in_page(sequence, earlier - 1).past;
    ASSERT_TRUE(cell.past == past_with(past, cell.token, RowKind::kPrompt) ||
                cell.past == past_with(past, cell.token, RowKind::kGenerated))
        << "the key at position " << earlier << " is another sequence's";
  }
}

void FakeDevice::embed(const Batch& batch) {
  call("embed");
  check(batch);
  rows_.clear();
  recent_.clear();
  newly_drawn_.clear();
  StepLog log;
  log.is_ahead = batch.rows.front().token == kSampledToken;
  for (const SequenceRows& sequence : batch.sequences) {
    for (int i = sequence.first_row; i < sequence.first_row + sequence.rows; ++i) {
      const Row& row = batch.rows[static_cast<std::size_t>(i)];
      see(sequence, row.position);
      const std::uint64_t past = row.position == 0 ? 0 : in_page(sequence, row.position - 1).past;
      const int token = token_of(batch, row);
      const Cell cell{.position = row.position, .token = token, .past = past_with(past, token, row.kind)};
      in_page(sequence, row.position) = cell;
      in_ring(sequence.ring, row.position) = cell;
      rows_.push_back(cell);
      history_.push_back(token);
      recent_.emplace_back(history_.end() - std::min<std::ptrdiff_t>(std::ssize(history_), kRepeatWindow),
                           history_.end());
    }
    const auto is_answered = [&](const OutputRow& output) {
      return output.row >= sequence.first_row && output.row < sequence.first_row + sequence.rows;
    };
    log.parts.push_back({sequence.ring, sequence.position, sequence.rows,
                         batch.rows[static_cast<std::size_t>(sequence.first_row)].kind,
                         std::any_of(batch.outputs.begin(), batch.outputs.end(), is_answered)});
  }
  steps_.push_back(std::move(log));
}

void FakeDevice::qkv(const Batch& /*batch*/, int /*layer*/) { call("qkv"); }
void FakeDevice::attend(const Batch& /*batch*/, int /*layer*/) { call("attend"); }
void FakeDevice::attention_out(const Batch& /*batch*/, int /*layer*/) { call("attention_out"); }

void FakeDevice::mlp(const Batch& /*batch*/, int /*layer*/) {
  call("mlp");
  drawn_.clear();
}

void FakeDevice::logits(const Batch& /*batch*/, int first, int count) {
  call("logits");
  EXPECT_LE(count, options_.max_logit_rows);
  logits_made_ = {first, count};
}

void FakeDevice::sample(const Batch& batch, int first, int count, std::span<Output> answers) {
  call("sample");
  EXPECT_EQ(logits_made_, (std::pair{first, count}));
  ASSERT_EQ(answers.size(), static_cast<std::size_t>(count));
  const bool is_continued = batch.rows.front().token == kSampledToken;
  Pending pending{answers, {}};
  for (int i = first; i < first + count; ++i) {
    const OutputRow& wanted = batch.outputs[static_cast<std::size_t>(i)];
    const auto row = static_cast<std::size_t>(wanted.row);
    const Cell& cell = rows_[row];
    Output output;
    if (wanted.sampling) {
      output.token = drawn_after(cell.past, wanted.sampling->seed, cell.position);
      // Where a step goes on from drawn tokens, the device knows the recent ones better than the host.
      if (wanted.sampling->repeat_penalty != 1.0f && !is_continued) {
        EXPECT_EQ(recent_[row], std::vector<int>(wanted.recent.begin(), wanted.recent.end()));
      }
    }
    output.logprob = -static_cast<double>(cell.past % 1000);
    output.top.resize(static_cast<std::size_t>(wanted.top_logprobs));
    pending.outputs.push_back(output);
    newly_drawn_.push_back(
        {batch.sequences[static_cast<std::size_t>(batch.rows[row].sequence)].ring, cell.position, output.token});
  }
  // Only a step of one drawn row for each sequence, sampled in one call, can be gone on from.
  const bool all_are_generated =
      std::all_of(batch.rows.begin(), batch.rows.end(), [](const Row& row) { return row.kind == RowKind::kGenerated; });
  if (count == static_cast<int>(batch.rows.size()) && all_are_generated) drawn_ = std::move(newly_drawn_);
  newly_drawn_.clear();
  pending_.push_back(std::move(pending));
  if (!options_.runs_ahead) finish(0);
}

void FakeDevice::finish(int calls_ahead) {
  call("finish");
  EXPECT_GE(calls_ahead, 0);
  EXPECT_LE(calls_ahead, std::ssize(pending_));
  while (std::ssize(pending_) > calls_ahead) {
    Pending& done = pending_.front();
    std::move(done.outputs.begin(), done.outputs.end(), done.answers.begin());
    pending_.pop_front();
  }
}

void FakeDevice::copy_ring(int from, int to) {
  call("copy_ring");
  rings_.at(static_cast<std::size_t>(to)) = rings_.at(static_cast<std::size_t>(from));
}

void FakeDevice::copy_page(int from, int to) {
  call("copy_page");
  pages_.at(static_cast<std::size_t>(to)) = pages_.at(static_cast<std::size_t>(from));
}

std::size_t FakeDevice::slot_bytes() const { return sizeof(Cell); }

// The order of the bytes is the device's own: here, the last slot comes first.
void FakeDevice::read_slots(int ring, int slot, int count, std::span<std::byte> out) {
  call("read_slots");
  ASSERT_EQ(out.size(), static_cast<std::size_t>(count) * sizeof(Cell));
  for (int i = 0; i < count; ++i) {
    const Cell& cell = rings_.at(static_cast<std::size_t>(ring)).at(static_cast<std::size_t>(slot + count - 1 - i));
    std::memcpy(out.data() + static_cast<std::size_t>(i) * sizeof(Cell), &cell, sizeof(Cell));
  }
}

void FakeDevice::write_slots(int ring, int slot, int count, std::span<const std::byte> bytes) {
  call("write_slots");
  ASSERT_EQ(bytes.size(), static_cast<std::size_t>(count) * sizeof(Cell));
  for (int i = 0; i < count; ++i) {
    Cell& cell = rings_.at(static_cast<std::size_t>(ring)).at(static_cast<std::size_t>(slot + count - 1 - i));
    std::memcpy(&cell, bytes.data() + static_cast<std::size_t>(i) * sizeof(Cell), sizeof(Cell));
  }
}

}  // namespace gemma
