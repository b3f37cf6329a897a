#include "simt.h"

#include <sys/mman.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#include <algorithm>
#include <array>
#include <boost/context/fiber.hpp>
#include <boost/context/stack_context.hpp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <random>
#include <utility>
#include <vector>

simt::Index threadIdx, blockIdx, blockDim, gridDim;

namespace simt {
namespace {

constexpr unsigned kWarp = 32, kWarpgroup = 128;
constexpr std::uint32_t kFirstAddress = 1024;  // of dynamic shared memory, as kernels see it
constexpr std::size_t kStackBytes = 128 << 10;
constexpr int kRoundsOfSilence = 100'000;  // after which nobody waits for anything that could still come

/// AddressSanitizer must be told whenever another stack is in use.
struct StackInUse {
  const void* bottom = nullptr;  // of a fiber's own stack
  std::size_t size = 0;
  void* kept = nullptr;  // what the sanitizer keeps for it

#ifdef __SANITIZE_ADDRESS__
  static void leave(StackInUse& from, const StackInUse& to) {
    __sanitizer_start_switch_fiber(&from.kept, to.bottom, to.size);
  }
  static void leave_for_ever(const StackInUse& to) { __sanitizer_start_switch_fiber(nullptr, to.bottom, to.size); }
  /// @param from  if given, learns what the stack is that was in use before
  static void enter(StackInUse& to, StackInUse* from = nullptr) {
    __sanitizer_finish_switch_fiber(to.kept, from == nullptr ? nullptr : &from->bottom,
                                    from == nullptr ? nullptr : &from->size);
  }
#else
  static void leave(StackInUse& /*from*/, const StackInUse& /*to*/) {}
  static void leave_for_ever(const StackInUse& /*to*/) {}
  static void enter(StackInUse& /*to*/, StackInUse* /*from*/ = nullptr) {}
#endif
};

/// Stacks are kept for the next launch. Each has a page below it that stops whoever runs over.
class Stacks {
 public:
  /// @param in_use  learns which stack it is
  explicit Stacks(StackInUse& in_use) : in_use_(&in_use) {}

  boost::context::stack_context allocate() {
    const boost::context::stack_context stack = take();
    *in_use_ = {static_cast<char*>(stack.sp) - stack.size, stack.size, nullptr};
    return stack;
  }
  void deallocate(boost::context::stack_context& stack) { pool().push_back(stack); }

 private:
  static boost::context::stack_context take() {
    auto& free = pool();
    if (free.empty()) {
      constexpr std::size_t kGuard = 4096;
      void* memory = mmap(nullptr, kStackBytes + kGuard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (memory == MAP_FAILED || mprotect(memory, kGuard, PROT_NONE) != 0) std::abort();
      boost::context::stack_context stack;
      stack.size = kStackBytes;
      stack.sp = static_cast<char*>(memory) + kGuard + kStackBytes;
      return stack;
    }
    const auto stack = free.back();
    free.pop_back();
    return stack;
  }

  static std::vector<boost::context::stack_context>& pool() {
    static std::vector<boost::context::stack_context> free;
    return free;
  }

  StackInUse* in_use_;
};

enum class State { kReady, kPolling, kGathering, kAtBarrier, kEnded };

struct Thread {
  Index index;
  State state = State::kReady;
  int barrier = 0;
  boost::context::fiber fiber, scheduler;
  StackInUse stack;
  std::vector<std::function<void()>> open_group;
  std::deque<std::vector<std::function<void()>>> groups;
};

/// Threads that meet: a warp or a warpgroup.
struct Gathering {
  std::vector<void*> records;
  unsigned running = 0;  // threads that have not ended
  unsigned came = 0;
  void (*meet)(void* const*) = nullptr;

  bool is_complete() const { return came > 0 && came == running; }
};

struct Barrier {
  unsigned came = 0;
  unsigned expected = 0;  // 0: all that have not ended
};

struct Block {
  Index index;
  std::vector<Thread> threads;
  std::vector<Gathering> warps, warpgroups;
  std::array<Barrier, 16> barriers;
  unsigned running = 0;
  std::unique_ptr<char[]> memory;
  char* shared = nullptr;
  std::size_t shared_bytes = 0;
  std::vector<std::function<void()>> deferred;
};

std::mutex running_grid;
std::minstd_rand random_order;
Block* block = nullptr;
Thread* thread = nullptr;
StackInUse scheduler_stack;

unsigned number_of(const Thread& of) { return static_cast<unsigned>(&of - block->threads.data()); }

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "simt: %s", what);
  if (block != nullptr) std::fprintf(stderr, " (block %u %u %u", block->index.x, block->index.y, block->index.z);
  if (thread != nullptr) std::fprintf(stderr, ", thread %u", number_of(*thread));
  std::fprintf(stderr, block != nullptr ? ")\n" : "\n");
  std::abort();
}

/// Goes back to the scheduler until the thread's state allows it to go on.
void yield(State state) {
  Thread& self = *thread;
  self.state = state;
  StackInUse::leave(self.stack, scheduler_stack);
  self.scheduler = std::move(self.scheduler).resume();
  StackInUse::enter(self.stack);
}

Gathering& gathering_of(unsigned lanes, unsigned number) {
  return lanes == kWarp ? block->warps[number / kWarp] : block->warpgroups[number / kWarpgroup];
}

void complete(Gathering& gathering, unsigned first, unsigned lanes) {
  gathering.meet(gathering.records.data());
  for (unsigned i = 0; i < lanes; ++i) {
    if (gathering.records[i] != nullptr) block->threads[first + i].state = State::kReady;
  }
  std::fill(gathering.records.begin(), gathering.records.end(), nullptr);
  gathering.came = 0;
}

void open_if_complete(int name) {
  Barrier& barrier = block->barriers[static_cast<std::size_t>(name)];
  const unsigned expected = barrier.expected == 0 ? block->running : barrier.expected;
  if (barrier.came == 0 || barrier.came < expected) return;
  barrier.came = 0;
  for (Thread& waiting : block->threads) {
    if (waiting.state == State::kAtBarrier && waiting.barrier == name) waiting.state = State::kReady;
  }
}

void come_to_barrier(int name, unsigned threads) {
  Barrier& barrier = block->barriers[static_cast<std::size_t>(name)];
  check(barrier.came == 0 || barrier.expected == threads, "threads expect different numbers at one barrier");
  barrier.expected = threads;
  ++barrier.came;
}

/// What is left to do when a thread has ended: others may have waited for nobody else.
void leave() {
  const unsigned number = number_of(*thread);
  check(thread->open_group.empty() && thread->groups.empty(), "a thread ends while copies of its own are under way");
  thread->state = State::kEnded;
  --block->running;
  for (const unsigned lanes : {kWarp, kWarpgroup}) {
    Gathering& gathering = gathering_of(lanes, number);
    --gathering.running;
    if (gathering.is_complete()) complete(gathering, number / lanes * lanes, lanes);
  }
  open_if_complete(0);
}

void start_block(Block& started, Index index, const Launch& launch) {
  block = &started;
  thread = nullptr;
  started.index = index;
  const unsigned count = launch.block.x * launch.block.y * launch.block.z;
  started.running = count;
  started.threads = std::vector<Thread>(count);
  for (const unsigned lanes : {kWarp, kWarpgroup}) {
    std::vector<Gathering>& gatherings = lanes == kWarp ? started.warps : started.warpgroups;
    gatherings.assign((count + lanes - 1) / lanes, {});
    for (unsigned i = 0; i < count; i += lanes) {
      gatherings[i / lanes].records.resize(lanes);
      gatherings[i / lanes].running = std::min(lanes, count - i);
    }
  }
  started.barriers = {};
  started.deferred.clear();
  if (started.memory == nullptr) {
    started.memory = std::make_unique<char[]>(launch.shared_bytes + 1024);
    started.shared = started.memory.get() + (1024 - reinterpret_cast<std::uintptr_t>(started.memory.get()) % 1024);
    started.shared_bytes = launch.shared_bytes;
  }
  std::memset(started.shared, 0xff, started.shared_bytes);
  for (unsigned i = 0; i < count; ++i) {
    Thread& made = started.threads[i];
    made.index = {i % launch.block.x, i / launch.block.x % launch.block.y, i / launch.block.x / launch.block.y};
    made.fiber = boost::context::fiber(std::allocator_arg, Stacks(made.stack),
                                       [&made, &launch](boost::context::fiber&& scheduler) {
                                         StackInUse::enter(made.stack, &scheduler_stack);
                                         made.scheduler = std::move(scheduler);
                                         launch.thread();
                                         leave();
                                         StackInUse::leave_for_ever(scheduler_stack);
                                         return std::move(made.scheduler);
                                       });
  }
}

void resume(Thread& resumed) {
  thread = &resumed;
  threadIdx = resumed.index;
  resumed.state = State::kReady;
  StackInUse::leave(scheduler_stack, resumed.stack);
  resumed.fiber = std::move(resumed.fiber).resume();
  StackInUse::enter(scheduler_stack);
  thread = nullptr;
}

/// @return whether the warp did anything but look in vain
bool visit_warp(unsigned first) {
  bool has_moved = false;
  std::uint32_t has_polled = 0;
  for (bool again = true; again;) {
    again = false;
    for (unsigned i = 0; i < kWarp && first + i < block->threads.size(); ++i) {
      Thread& next = block->threads[first + i];
      const bool was_polling = next.state == State::kPolling;
      if (next.state != State::kReady && !(was_polling && (has_polled >> i & 1) == 0)) continue;
      resume(next);
      if (next.state == State::kPolling) has_polled |= 1u << i;
      if (next.state != State::kPolling || !was_polling) has_moved = true;
      again = true;
    }
  }
  return has_moved;
}

bool visit_block(Block& visited) {
  block = &visited;
  blockIdx = visited.index;
  bool has_moved = false;
  // What is under way arrives at random, each time about half of it.
  std::vector<std::function<void()>> deferred = std::move(visited.deferred);
  visited.deferred.clear();
  for (auto& work : deferred) {
    if (random_order() % 2 == 0) {
      visited.deferred.push_back(std::move(work));
    } else {
      work();
    }
    has_moved = true;
  }
  const auto warps = static_cast<unsigned>(visited.warps.size());
  const auto first = static_cast<unsigned>(random_order() % warps);
  for (unsigned i = 0; i < warps; ++i) has_moved |= visit_warp((first + i) % warps * kWarp);
  return has_moved;
}

void run_blocks(std::vector<Block>& blocks) {
  int silence = 0;
  for (bool is_running = true; is_running;) {
    is_running = false;
    bool has_moved = false;
    for (Block& each : blocks) {
      if (each.running == 0) continue;
      has_moved |= visit_block(each);
      is_running |= each.running > 0;
      if (each.running == 0 && !each.deferred.empty()) fail("a block ends while copies are under way");
    }
    silence = has_moved ? 0 : silence + 1;
    if (silence < kRoundsOfSilence) continue;
    for (Block& each : blocks) {
      block = &each;
      for (const Thread& one : each.threads) {
        if (number_of(one) % kWarp != 0 && one.state != State::kPolling) continue;
        std::fprintf(stderr, "block %u, thread %u: %s\n", each.index.x, number_of(one),
                     one.state == State::kPolling     ? "looks at memory"
                     : one.state == State::kGathering ? "waits for its warp"
                     : one.state == State::kAtBarrier ? "waits at a barrier"
                                                      : "has ended");
      }
    }
    thread = nullptr;
    fail("the threads wait for each other for ever");
  }
}

int number_from_environment(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoi(text);
}

}  // namespace

int compute_capability() { return GEMMA_SIMT_ARCHITECTURE; }
int multiprocessors() { return number_from_environment("GEMMA_SIMT_MULTIPROCESSORS", 5); }

int shared_memory_of_block() {
  switch (compute_capability()) {
    case 80:
      return 163 * 1024;
    case 90:
    case 100:
      return 227 * 1024;
    default:
      return 99 * 1024;
  }
}

void run(const Launch& launch) {
  const std::lock_guard lock(running_grid);
  random_order.seed(static_cast<unsigned>(number_from_environment("GEMMA_SIMT_SEED", 1)));
  blockDim = launch.block;
  gridDim = launch.grid;
  const unsigned count = launch.grid.x * launch.grid.y * launch.grid.z;
  std::vector<Block> blocks(launch.is_cooperative ? count : 1);
  for (unsigned i = 0; i < count; ++i) {
    const Index index = {i % launch.grid.x, i / launch.grid.x % launch.grid.y, i / launch.grid.x / launch.grid.y};
    start_block(blocks[launch.is_cooperative ? i : 0], index, launch);
    if (!launch.is_cooperative || i + 1 == count) run_blocks(blocks);
  }
  block = nullptr;
}

void check(bool holds, const char* what) {
  if (!holds) fail(what);
}

void poll() { yield(State::kPolling); }

void wait_at_barrier(int name, unsigned threads) {
  come_to_barrier(name, threads);
  thread->state = State::kAtBarrier;
  thread->barrier = name;
  open_if_complete(name);
  if (thread->state == State::kAtBarrier) yield(State::kAtBarrier);
}

void arrive_at_barrier(int name, unsigned threads) {
  come_to_barrier(name, threads);
  open_if_complete(name);
}

char* shared_memory() { return block->shared; }

std::uint32_t shared_address(const void* place) {
  const std::ptrdiff_t offset = static_cast<const char*>(place) - block->shared;
  check(offset >= 0 && static_cast<std::size_t>(offset) <= block->shared_bytes, "not a place in dynamic shared memory");
  return kFirstAddress + static_cast<std::uint32_t>(offset);
}

char* shared_place(std::uint32_t address) {
  check(address >= kFirstAddress && address - kFirstAddress <= block->shared_bytes, "not an address of shared memory");
  return block->shared + (address - kFirstAddress);
}

void defer(std::function<void()> work) { block->deferred.push_back(std::move(work)); }

void defer_in_thread(std::function<void()> work) { thread->open_group.push_back(std::move(work)); }

void close_group() { thread->groups.push_back(std::exchange(thread->open_group, {})); }

void finish_groups(std::size_t but) {
  for (; thread->groups.size() > but; thread->groups.pop_front()) {
    for (const auto& work : thread->groups.front()) work();
  }
}

void defer_rest_of_thread(std::function<void()> then) {
  close_group();
  defer([groups = std::exchange(thread->groups, {}), then = std::move(then)] {
    for (const auto& group : groups) {
      for (const auto& work : group) work();
    }
    then();
  });
}

void gather(unsigned lanes, void* record, void (*meet)(void* const*)) {
  const unsigned number = number_of(*thread);
  const unsigned first = number / lanes * lanes;
  Gathering& gathering = gathering_of(lanes, number);
  check(gathering.came == 0 || gathering.meet == meet, "threads of a warp meet at different places");
  gathering.meet = meet;
  gathering.records[number - first] = record;
  ++gathering.came;
  if (gathering.is_complete()) {
    complete(gathering, first, lanes);
  } else {
    yield(State::kGathering);
  }
}

}  // namespace simt
