// The cache's bookkeeping on real devices: whatever is done to a sequence, it reads on as if it had read its tokens
// afresh.
#include "runtime/kv_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include "gemma/error.h"
#include "support/reader.h"
#include "support/small_model.h"
#include "unit/device/device_test.h"

namespace gemma {
namespace {

Model tiny_model(const DeviceKind& kind, int window) {
  Config config = small_config(kind.width_multiple);
  config.hidden_size = std::max(16, kind.width_multiple);
  config.intermediate_size = std::max(24, 2 * kind.width_multiple);
  config.heads = kind.width_multiple > 16 ? 4 : 2;
  config.kv_heads = 1;
  config.head_dim = 16;
  config.vocab_size = 19;
  config.window = window;
  config.query_pre_attn_scalar = 1;
  config.layers = alternating_layers(2);
  return random_model(config, 51);
}

TEST(KvBytes, Of2BAtAContextOf8192AreWhatItsShapeSays) {
  const Config config = config_of_shape("2b");
  const KvBytes bytes = kv_bytes(config, config.window, 8192, KvType::kBf16);
  // 13 layers of each kind; keys and values of 4 heads of 256 bf16 numbers. A ring has a block of 64 to spare.
  constexpr std::uint64_t kPosition = 2 * 4 * 256 * 2;
  EXPECT_EQ(bytes.local, 13 * (4096 + 64) * kPosition);
  EXPECT_EQ(bytes.global, 13 * 8192 * kPosition);
  EXPECT_EQ(bytes.without_window, 26 * 8192 * kPosition);
}

int pages_for(int positions) { return (positions + kPagePositions - 1) / kPagePositions; }

class CacheOnDevice : public DeviceTest {};
GEMMA_ON_ALL_DEVICES(CacheOnDevice);

// Does random things to sequences of a cache, and knows what tokens each must now hold.
class Player {
 public:
  static constexpr int kSequences = 4;
  static constexpr int kContext = 420;

  Player(const DeviceKind& kind, const Model& model, unsigned seed)
      : model_(model), random_(seed), reader_(kind, model, options()), fresh_(kind, model, options()) {
    pages_at_start_ = cache().free_pages();
  }

  void play(int moves) {
    for (int i = 0; i < moves && !::testing::Test::HasFatalFailure(); ++i) {
      SCOPED_TRACE("move " + std::to_string(i));
      if (texts_.empty()) {
        create();
        continue;
      }
      switch (below(12)) {
        case 0:
          create();
          break;
        case 1:
          fork();
          break;
        case 2:
          remove();
          break;
        case 3:
          checkpoint();
          break;
        case 4:
        case 5:
          go_back_to_checkpoint();
          break;
        case 6:
          go_back();
          break;
        case 7:
          forget_checkpoint();
          break;
        default:
          read();
          break;
      }
      ASSERT_GE(cache().free_pages(), 0);
      ASSERT_LE(cache().free_pages(), pages_at_start_);
    }
  }

  void remove_all() {
    while (!texts_.empty()) remove();
    EXPECT_EQ(cache().free_pages(), pages_at_start_) << "pages have leaked";
    EXPECT_EQ(cache().checkpoint_bytes(), 0u) << "checkpoints have leaked";
  }

  int comparisons() const { return comparisons_; }
  int returns() const { return returns_; }  ///< goings back to a checkpoint
  int refusals() const { return refusals_; }

 private:
  struct Text {
    std::vector<int> tokens;
    std::vector<int> checkpoints;
  };

  static ReaderOptions options() {
    ReaderOptions options;
    options.sequences = kSequences;
    options.context = kContext;
    options.max_rows = 300;
    return options;
  }

  KvCache& cache() { return reader_.cache(); }
  int below(int limit) { return static_cast<int>(random_() % static_cast<unsigned>(limit)); }

  KvCache::Id any() {
    auto text = texts_.begin();
    std::advance(text, below(static_cast<int>(texts_.size())));
    return text->first;
  }

  void create() {
    if (texts_.size() == kSequences) {
      EXPECT_FALSE(cache().can_create(1));
      EXPECT_THROW(cache().create(1), Error);
      return;
    }
    const int before = cache().free_pages();
    EXPECT_EQ(cache().can_create(kContext), before >= pages_for(kContext));
    if (before < pages_for(kContext)) {
      EXPECT_THROW(cache().create(kContext), Error);
      return;
    }
    const KvCache::Id id = cache().create(kContext);
    ASSERT_TRUE(texts_.try_emplace(id).second) << "a living sequence's id was given out again";
    EXPECT_EQ(cache().length(id), 0);
    EXPECT_EQ(cache().free_pages(), before - pages_for(kContext));
  }

  void fork() {
    const KvCache::Id id = any();
    const int whole = cache().length(id);
    const int length = below(2) == 0 ? whole : whole - below(std::min(whole, 100) + 1);
    if (!cache().can_fork(id, length, kContext)) {
      // It takes at most a whole sequence's pages and a copy of the page that both may go on to write.
      ASSERT_TRUE(texts_.size() == kSequences || cache().free_pages() <= pages_for(kContext) ||
                  !cache().has_window_before(id, length));
      EXPECT_THROW(cache().fork(id, length, kContext), Error);
      return;
    }
    const int pages = cache().free_pages() - cache().pages_for_fork(id, length, kContext);
    const KvCache::Id child = cache().fork(id, length, kContext);
    EXPECT_EQ(cache().free_pages(), pages);
    Text copy{texts_.at(id).tokens, {}};
    copy.tokens.resize(static_cast<std::size_t>(length));
    ASSERT_TRUE(texts_.try_emplace(child, copy).second);
    EXPECT_EQ(cache().length(child), static_cast<int>(copy.tokens.size()));
  }

  void remove() {
    const KvCache::Id id = any();
    const int pages = cache().free_pages_without({&id, 1});
    cache().remove(id);
    EXPECT_EQ(cache().free_pages(), pages);
    texts_.erase(id);
  }

  void checkpoint() {
    const KvCache::Id id = any();
    Text& text = texts_.at(id);
    int length = static_cast<int>(text.tokens.size());
    if (below(2) == 0) {
      cache().checkpoint(id);
    } else {
      length = std::max(0, length - below(40));
      if (!cache().can_truncate(id, length)) {
        EXPECT_THROW(cache().checkpoint(id, length), Error);
        return;
      }
      cache().checkpoint(id, length);
    }
    const auto place = std::lower_bound(text.checkpoints.begin(), text.checkpoints.end(), length);
    if (place == text.checkpoints.end() || *place != length) text.checkpoints.insert(place, length);
  }

  void forget_checkpoint() {
    const KvCache::Id id = any();
    Text& text = texts_.at(id);
    EXPECT_EQ(cache().drop_oldest_checkpoint(id), !text.checkpoints.empty());
    if (!text.checkpoints.empty()) text.checkpoints.erase(text.checkpoints.begin());
  }

  void go_back_to_checkpoint() {
    const KvCache::Id id = any();
    const Text& text = texts_.at(id);
    if (text.checkpoints.empty()) return;
    const int length = text.checkpoints[below(static_cast<int>(text.checkpoints.size()))];
    if (cache().free_pages() > pages_for(kContext)) {
      ASSERT_TRUE(cache().can_truncate(id, length))
          << "to the checkpoint at " << length << " of " << text.tokens.size();
    }
    go_back_to(id, length);
    ++returns_;
  }

  void go_back() {
    const KvCache::Id id = any();
    const int length = static_cast<int>(texts_.at(id).tokens.size());
    ASSERT_TRUE(cache().can_truncate(id, length));
    const int wanted = below(2) == 0 ? std::max(0, length - below(9)) : below(length + 1);
    go_back_to(id, below(4) == 0 ? nearest(id, wanted) : wanted);
  }

  int nearest(KvCache::Id id, int wanted) {
    const int found = cache().nearest_length(id, wanted);
    EXPECT_TRUE(found == 0 || cache().can_truncate(id, found)) << found;
    EXPECT_LE(found, wanted);
    const std::vector<int>& checkpoints = texts_.at(id).checkpoints;
    EXPECT_TRUE(found == wanted || found == 0 || std::binary_search(checkpoints.begin(), checkpoints.end(), found));
    for (int checkpoint : checkpoints) {
      if (checkpoint <= wanted && checkpoint > found) {
        EXPECT_FALSE(cache().can_truncate(id, checkpoint)) << checkpoint << " is nearer to " << wanted;
      }
    }
    return found;
  }

  void go_back_to(KvCache::Id id, int length) {
    Text& text = texts_.at(id);
    if (!cache().can_truncate(id, length)) {
      EXPECT_THROW(cache().truncate(id, length), Error);
      EXPECT_EQ(cache().length(id), static_cast<int>(text.tokens.size()));
      ++refusals_;
      return;
    }
    cache().truncate(id, length);
    ASSERT_EQ(cache().length(id), length);
    text.tokens.resize(length);
    std::erase_if(text.checkpoints, [&](int checkpoint) { return checkpoint > length; });
    if (length < kContext) read(id, 1 + below(3));
  }

  void read() {
    const int sizes[] = {1, 2, 5, 30, 64, 150};
    read(any(), sizes[below(6)]);
  }

  // Reads on in several sequences at once; then every one that took part must answer as a fresh one would.
  void read(KvCache::Id id, int count) {
    std::vector<Passage> passages;
    for (auto& [other, text] : texts_) {
      const int room = kContext - static_cast<int>(text.tokens.size());
      const int wanted = other == id ? count : below(3) == 0 ? 1 + below(4) : 0;
      const int rows = std::min(room, wanted);
      if (rows == 0) continue;
      passages.push_back({other, random_tokens(rows, model_.config.vocab_size, static_cast<unsigned>(random_()))});
      text.tokens.insert(text.tokens.end(), passages.back().tokens.begin(), passages.back().tokens.end());
    }
    if (passages.empty()) {
      EXPECT_THROW(cache().extend(id, 1), Error) << "the sequence is as long as it may be";
      return;
    }
    const std::vector<Logits> logits = reader_.step(passages);
    for (std::size_t i = 0; i < passages.size(); ++i) {
      const std::vector<int>& tokens = texts_.at(passages[i].sequence).tokens;
      ASSERT_EQ(cache().length(passages[i].sequence), static_cast<int>(tokens.size()));
      const KvCache::Id afresh = fresh_.cache().create(kContext);
      const std::size_t earlier = tokens.size() - passages[i].tokens.size();
      fresh_.skip(afresh, std::span(tokens).first(earlier), 64);
      const Logits expected = fresh_.read(afresh, std::span(tokens).subspan(earlier), 64);
      fresh_.cache().remove(afresh);
      ASSERT_EQ(first_difference(logits[i], expected), "")
          << "sequence " << passages[i].sequence << " of " << tokens.size() << " tokens";
      ++comparisons_;
    }
  }

  const Model& model_;
  std::mt19937 random_;
  Reader reader_;
  Reader fresh_;
  std::map<KvCache::Id, Text> texts_;
  int pages_at_start_ = 0;
  int comparisons_ = 0;
  int returns_ = 0;
  int refusals_ = 0;
};

TEST_P(CacheOnDevice, ReadsOnAsIfAfreshAfterAnySequenceOfMoves) {
  int comparisons = 0;
  int returns = 0;
  int refusals = 0;
  for (int window : {1, 5, 70}) {
    const Model model = tiny_model(GetParam(), window);
    for (unsigned seed = 0; seed < 3; ++seed) {
      SCOPED_TRACE("window " + std::to_string(window) + ", seed " + std::to_string(seed));
      Player player(GetParam(), model, seed);
      player.play(250);
      if (HasFatalFailure()) return;
      player.remove_all();
      comparisons += player.comparisons();
      returns += player.returns();
      refusals += player.refusals();
    }
  }
  EXPECT_GT(comparisons, 500);
  EXPECT_GT(returns, 50);
  EXPECT_GT(refusals, 10);
}

TEST_P(CacheOnDevice, CopiesASharedLastPageBeforeEitherSideWritesToIt) {
  Config config = tiny_model(GetParam(), 5).config;
  config.layers = {LayerKind::kGlobal, LayerKind::kGlobal};
  const Model model = random_model(config, 52);
  const std::vector<int> prefix = random_tokens(kPagePositions + 20, config.vocab_size, 53);
  const std::vector<int> endings[] = {random_tokens(10, config.vocab_size, 54),
                                      random_tokens(10, config.vocab_size, 55),
                                      random_tokens(10, config.vocab_size, 56)};
  ReaderOptions options;
  options.sequences = 3;
  Reader reader(GetParam(), model, options);
  KvCache& cache = reader.cache();
  const KvCache::Id parent = cache.create(200);
  reader.skip(parent, prefix, 64);
  const KvCache::Id ids[] = {cache.fork(parent, 200), parent, cache.fork(parent, 200)};

  // Row by row in turn, so that a page written by the wrong sequence would be read by the others.
  Logits found[3];
  for (int i = 0; i < 10; ++i) {
    for (int k = 0; k < 3; ++k) append(found[k], reader.read(ids[k], std::span(endings[k]).subspan(i, 1), 1));
  }
  for (int k = 0; k < 3; ++k) {
    std::vector<int> whole = prefix;
    whole.insert(whole.end(), endings[k].begin(), endings[k].end());
    Logits expected = read_alone(GetParam(), model, whole, 64);
    expected.erase(expected.begin(), expected.begin() + static_cast<std::ptrdiff_t>(prefix.size()));
    EXPECT_EQ(first_difference(found[k], expected), "") << "sequence " << k;
  }
}

TEST_P(CacheOnDevice, CopiesASharedFullPageThatASequenceHasGoneBackInto) {
  const Model model = tiny_model(GetParam(), 5);
  const std::vector<int> prefix = random_tokens(2 * kPagePositions, model.config.vocab_size, 57);
  const std::vector<int> ending = random_tokens(10, model.config.vocab_size, 58);
  ReaderOptions options;
  options.sequences = 2;
  Reader reader(GetParam(), model, options);
  KvCache& cache = reader.cache();
  const KvCache::Id parent = cache.create(200);
  reader.skip(parent, prefix, 64);
  const KvCache::Id fork = cache.fork(parent, 200);
  ASSERT_TRUE(cache.can_truncate(fork, 100));
  cache.truncate(fork, 100);
  reader.skip(fork, random_tokens(50, model.config.vocab_size, 59), 64);

  std::vector<int> whole = prefix;
  whole.insert(whole.end(), ending.begin(), ending.end());
  Logits expected = read_alone(GetParam(), model, whole, 64);
  expected.erase(expected.begin(), expected.begin() + 2 * kPagePositions);
  EXPECT_EQ(first_difference(reader.read(parent, ending, 10), expected), "");
}

TEST_P(CacheOnDevice, SetsPagesAsideForASequenceAndGivesThemBack) {
  const Model model = tiny_model(GetParam(), 5);
  ReaderOptions options;
  options.sequences = 4;
  options.pages = 10;
  Reader reader(GetParam(), model, options);
  KvCache& cache = reader.cache();
  EXPECT_EQ(cache.free_pages(), 10);
  const KvCache::Id first = cache.create(6 * kPagePositions);
  EXPECT_EQ(cache.free_pages(), 4);
  reader.skip(first, random_tokens(100, model.config.vocab_size, 60), 64);
  EXPECT_EQ(cache.free_pages(), 4) << "a sequence grows into what it was promised";
  EXPECT_THROW(cache.create(4 * kPagePositions + 1), Error);
  const KvCache::Id second = cache.create(4 * kPagePositions);
  EXPECT_EQ(cache.free_pages(), 0);
  EXPECT_THROW(cache.create(1), Error);
  EXPECT_THROW(cache.fork(first, 6 * kPagePositions), Error);
  reader.skip(second, random_tokens(4 * kPagePositions, model.config.vocab_size, 61), 64);
  EXPECT_THROW(cache.extend(second, 1), Error) << "a sequence never outgrows what it was created for";
  EXPECT_EQ(cache.length(second), 4 * kPagePositions);
  cache.truncate(first, 0);
  EXPECT_EQ(cache.free_pages(), 0) << "what a sequence gives up stays promised to it";
  cache.remove(first);
  cache.remove(second);
  EXPECT_EQ(cache.free_pages(), 10);
}

TEST_P(CacheOnDevice, SharesThePagesOfAForkInsteadOfCopyingThem) {
  const Model model = tiny_model(GetParam(), 5);
  ReaderOptions options;
  options.sequences = 4;
  options.pages = 8;
  Reader reader(GetParam(), model, options);
  KvCache& cache = reader.cache();
  const KvCache::Id parent = cache.create(5 * kPagePositions);
  reader.skip(parent, random_tokens(5 * kPagePositions - 10, model.config.vocab_size, 62), 64);
  // Whole copies would not fit: 5 + 5 > 8. Four full pages are shared, only the last differs.
  const KvCache::Id fork = cache.fork(parent, 5 * kPagePositions);
  reader.skip(fork, random_tokens(10, model.config.vocab_size, 63), 10);
  reader.skip(parent, random_tokens(10, model.config.vocab_size, 64), 10);
  EXPECT_EQ(cache.free_pages(), 2);
  cache.remove(parent);
  EXPECT_EQ(cache.free_pages(), 3) << "the fork still holds the pages that it shared";
  cache.remove(fork);
  EXPECT_EQ(cache.free_pages(), 8);
}

TEST_P(CacheOnDevice, TakesNoPagesForAForkThatCannotGrow) {
  const Model model = tiny_model(GetParam(), 5);
  ReaderOptions options;
  options.sequences = 3;
  options.pages = 8;
  Reader reader(GetParam(), model, options);
  KvCache& cache = reader.cache();
  const KvCache::Id parent = cache.create(3 * kPagePositions);
  reader.skip(parent, random_tokens(100, model.config.vocab_size, 66), 64);
  EXPECT_EQ(cache.free_pages(), 5);
  const KvCache::Id kept = cache.fork(parent, 100);
  EXPECT_EQ(cache.free_pages(), 4) << "the parent will have to copy its last page";
  EXPECT_THROW(cache.extend(kept, 1), Error);
  const KvCache::Id child = cache.fork(kept, 80, 3 * kPagePositions);
  EXPECT_EQ(cache.free_pages(), 2) << "one of three is shared";
  EXPECT_EQ(cache.length(child), 80);
  reader.skip(parent, random_tokens(20, model.config.vocab_size, 67), 64);
  reader.skip(child, random_tokens(20, model.config.vocab_size, 68), 64);
  EXPECT_EQ(cache.free_pages(), 2);
  const KvCache::Id others[] = {parent, child};
  EXPECT_EQ(cache.free_pages_without(others), 6);
  cache.remove(parent);
  cache.remove(child);
  EXPECT_EQ(cache.free_pages(), 6);
  cache.remove(kept);
  EXPECT_EQ(cache.free_pages(), 8);
}

TEST_P(CacheOnDevice, RefusesAFullHouseOfSequencesAndAForkShorterThanItsPast) {
  const Model model = tiny_model(GetParam(), 5);
  ReaderOptions options;
  options.sequences = 2;
  Reader reader(GetParam(), model, options);
  const KvCache::Id first = reader.cache().create(100);
  reader.skip(first, random_tokens(50, model.config.vocab_size, 65), 50);
  EXPECT_THROW(reader.cache().fork(first, 49), Error);
  const KvCache::Id second = reader.cache().create(100);
  EXPECT_THROW(reader.cache().create(100), Error);
  EXPECT_THROW(reader.cache().fork(first, 100), Error);
  reader.cache().remove(second);
  EXPECT_EQ(reader.cache().length(reader.cache().fork(first, 100)), 50);
}

TEST_P(CacheOnDevice, KeepsForACheckpointOnlyWhatIsOverwritten) {
  const Model model = tiny_model(GetParam(), 5);
  Reader reader(GetParam(), model);
  KvCache& cache = reader.cache();
  const int slots = reader.device().kv_layout().ring_slots;
  const KvCache::Id sequence = cache.create(1024);
  EXPECT_FALSE(cache.drop_oldest_checkpoint(sequence));
  reader.skip(sequence, random_tokens(slots - 10, model.config.vocab_size, 66), 64);
  cache.checkpoint(sequence);
  reader.skip(sequence, random_tokens(10, model.config.vocab_size, 67), 64);
  EXPECT_EQ(cache.checkpoint_bytes(), 0u) << "the ring has not wrapped yet";
  reader.skip(sequence, random_tokens(3 * slots, model.config.vocab_size, 68), 64);
  // The next query at the checkpoint sees four earlier keys through a window of five.
  EXPECT_EQ(cache.checkpoint_bytes(), 4 * reader.device().slot_bytes());
  EXPECT_TRUE(cache.can_truncate(sequence, slots - 10));
  EXPECT_FALSE(cache.can_truncate(sequence, slots - 9));
  EXPECT_FALSE(cache.can_truncate(sequence, slots - 11));
  EXPECT_TRUE(cache.can_truncate(sequence, 0)) << "an empty sequence needs nothing";
  EXPECT_FALSE(cache.can_truncate(sequence, 4 * slots + 1)) << "going back never goes forward";
  EXPECT_FALSE(cache.can_truncate(sequence, -1));
  EXPECT_TRUE(cache.drop_oldest_checkpoint(sequence));
  EXPECT_EQ(cache.checkpoint_bytes(), 0u);
  EXPECT_FALSE(cache.can_truncate(sequence, slots - 10));
  EXPECT_FALSE(cache.drop_oldest_checkpoint(sequence));
}

TEST_P(CacheOnDevice, GoesBackAgainAndAgainAsTheTurnsOfAChatAreRetried) {
  const Model model = tiny_model(GetParam(), 20);
  Reader reader(GetParam(), model);
  KvCache& cache = reader.cache();
  const int wrap = 2 * reader.device().kv_layout().ring_slots;
  const KvCache::Id sequence = cache.create(1024);
  std::vector<int> text;
  unsigned seed = 70;
  for (int turn = 0; turn < 4; ++turn) {
    const std::vector<int> question = random_tokens(15, model.config.vocab_size, ++seed);
    text.insert(text.end(), question.begin(), question.end());
    Logits expected = read_alone(GetParam(), model, text, 64);
    expected.erase(expected.begin(), expected.end() - 15);
    EXPECT_EQ(first_difference(reader.read(sequence, question, 15), expected), "") << "turn " << turn;
    cache.checkpoint(sequence);
    for (int attempt = 0; attempt < 2; ++attempt) {
      reader.skip(sequence, random_tokens(wrap, model.config.vocab_size, ++seed), 64);
      ASSERT_TRUE(cache.can_truncate(sequence, static_cast<int>(text.size())))
          << "turn " << turn << ", attempt " << attempt;
      cache.truncate(sequence, static_cast<int>(text.size()));
    }
  }
}

TEST_P(CacheOnDevice, ForgetsWhatItKeptOfTokensThatHaveBeenTakenBack) {
  const Model model = tiny_model(GetParam(), 20);
  Reader reader(GetParam(), model);
  KvCache& cache = reader.cache();
  const int wrap = 2 * reader.device().kv_layout().ring_slots;
  const KvCache::Id sequence = cache.create(1024);
  // Two checkpoints whose windows lie in the same blocks, so that what they need is kept together.
  std::vector<int> text = random_tokens(70, model.config.vocab_size, 90);
  reader.skip(sequence, text, 64);
  cache.checkpoint(sequence);
  reader.skip(sequence, random_tokens(10, model.config.vocab_size, 91), 64);
  cache.checkpoint(sequence);
  reader.skip(sequence, random_tokens(wrap, model.config.vocab_size, 92), 64);

  // Another ten tokens where the second checkpoint was.
  cache.truncate(sequence, 70);
  const std::vector<int> others = random_tokens(10, model.config.vocab_size, 93);
  text.insert(text.end(), others.begin(), others.end());
  reader.skip(sequence, others, 64);
  cache.checkpoint(sequence);
  reader.skip(sequence, random_tokens(wrap, model.config.vocab_size, 94), 64);

  for (const int length : {80, 70}) {
    cache.truncate(sequence, length);
    text.resize(static_cast<std::size_t>(length));
    const std::vector<int> more = random_tokens(5, model.config.vocab_size, 95);
    text.insert(text.end(), more.begin(), more.end());
    Logits expected = read_alone(GetParam(), model, text, 64);
    expected.erase(expected.begin(), expected.end() - 5);
    EXPECT_EQ(first_difference(reader.read(sequence, more, 5), expected), "") << "after going back to " << length;
  }
}

TEST_P(CacheOnDevice, MovesTheBytesOfSlotsThereAndBack) {
  const Model model = tiny_model(GetParam(), 5);
  ReaderOptions options;
  options.sequences = 2;
  Reader reader(GetParam(), model, options);
  Device& device = reader.device();
  const Config& config = model.config;
  EXPECT_EQ(device.slot_bytes(),
            2 * config.kv_heads * head_bytes(GetParam().cache, config.head_dim) * config.local_layer_count());
  constexpr int kCount = 3;
  std::vector<std::byte> written(kCount * device.slot_bytes());
  for (std::size_t i = 0; i < written.size(); ++i) written[i] = static_cast<std::byte>(i % 61);
  const std::vector<std::byte> blank(device.slot_bytes());
  device.write_slots(0, 3, kCount, written);
  device.write_slots(0, 3 + kCount, 1, blank);
  std::vector<std::byte> read(written.size());
  device.read_slots(0, 3, kCount, read);
  EXPECT_EQ(read, written);
  device.copy_ring(0, 1);
  device.read_slots(1, 3, kCount, read);
  EXPECT_EQ(read, written);
  read.resize(blank.size());
  device.read_slots(0, 3 + kCount, 1, read);
  EXPECT_EQ(read, blank);
}

TEST_P(CacheOnDevice, CanCheckpointALengthThatItHasPassed) {
  const Model model = tiny_model(GetParam(), 20);
  Reader reader(GetParam(), model);
  KvCache& cache = reader.cache();
  const int wrap = 2 * reader.device().kv_layout().ring_slots;
  const KvCache::Id sequence = cache.create(1024);
  std::vector<int> text = random_tokens(wrap + 30, model.config.vocab_size, 80);
  reader.skip(sequence, text, 64);
  const int length = wrap + 29;
  cache.checkpoint(sequence, length);
  EXPECT_THROW(cache.checkpoint(sequence, 25), Error) << "its window has left the ring";
  EXPECT_THROW(cache.checkpoint(sequence, wrap + 31), Error);
  reader.skip(sequence, random_tokens(wrap, model.config.vocab_size, 81), 1);
  EXPECT_EQ(cache.nearest_length(sequence, length + 20), length);
  EXPECT_EQ(cache.nearest_length(sequence, length - 1), 0);
  EXPECT_EQ(cache.nearest_length(sequence, 2 * wrap + 30), 2 * wrap + 30);
  cache.truncate(sequence, length);
  text.resize(static_cast<std::size_t>(length));
  const std::vector<int> more = random_tokens(40, model.config.vocab_size, 82);
  text.insert(text.end(), more.begin(), more.end());
  Logits expected = read_alone(GetParam(), model, text, 64);
  expected.erase(expected.begin(), expected.end() - 40);
  EXPECT_EQ(first_difference(reader.read(sequence, more, 7), expected), "");
}

}  // namespace
}  // namespace gemma
