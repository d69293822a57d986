#include "fiber.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "counters.h"

// Switching stacks. ucontext does it everywhere, at the price of a system call; x86-64 gets eight
// instructions.
#if defined(__x86_64__)
extern "C" void jakiro_shim_switch(void** save, void* load);
asm(R"(
.text
.globl jakiro_shim_switch
.hidden jakiro_shim_switch
.type jakiro_shim_switch, @function
jakiro_shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size jakiro_shim_switch, .-jakiro_shim_switch
)");
#endif

namespace shim {
namespace {

constexpr std::size_t kStack = 128 * 1024;

class Stack {
 public:
  Stack() : base_(mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {}
  ~Stack() { munmap(base_, kStack); }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;
  char* base() const { return static_cast<char*>(base_); }

 private:
  void* base_;
};

#if defined(__x86_64__)
class Context {
 public:
  void start(const Stack& stack, void (*entry)()) {
    auto** top = reinterpret_cast<void**>(stack.base() + kStack - 64);
    *--top = nullptr;  // a return address that is never used; keeps the entry's stack aligned
    *--top = reinterpret_cast<void*>(entry);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    pointer_ = top;
  }
  void switch_to(Context& other) { jakiro_shim_switch(&pointer_, other.pointer_); }

 private:
  void* pointer_ = nullptr;
};
#else
class Context {
 public:
  void start(const Stack& stack, void (*entry)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack.base();
    context_.uc_stack.ss_size = kStack;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
  }
  void switch_to(Context& other) { swapcontext(&context_, &other.context_); }

 private:
  ucontext_t context_;
};
#endif

struct Fiber {
  Thread thread;
  Context context;
  Stack stack;
};

struct Warp {
  int arrived = 0;
  unsigned turn = 0;  // two sets of slots: nobody can be two exchanges ahead of a lane that still reads
  alignas(16) unsigned char slots[2][32 * kSlot];
};

struct Machine {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Warp> warps;
  std::vector<Fiber*> runnable;
  std::vector<unsigned char> shared;
  std::size_t shared_bytes = 0;
  Context scheduler;
  Fiber* current = nullptr;
  dim3 block;
  int threads = 0, at_barrier = 0, finished = 0;
  unsigned epoch = 0;
  const std::function<void()>* kernel = nullptr;
  std::uint64_t seed = 0;
  std::mt19937_64 random;
  std::string error;
  Counters counters;
};

Machine machine;

void give_way() { machine.current->context.switch_to(machine.scheduler); }

void enter() {
  (*machine.kernel)();
  ++machine.finished;
  give_way();
}

Fiber* next() {
  auto& runnable = machine.runnable;
  const std::size_t pick = machine.seed == 0 ? 0 : machine.random() % runnable.size();
  Fiber* fiber = runnable[pick];
  if (machine.seed == 0) {
    runnable.erase(runnable.begin());
  } else {
    runnable[pick] = runnable.back();
    runnable.pop_back();
  }
  return fiber;
}

void run_block(dim3 block) {
  machine.block = block;
  machine.epoch = 0;
  machine.at_barrier = machine.finished = 0;
  machine.warps.assign((machine.threads + 31) / 32, Warp());
  machine.shared.assign(machine.shared_bytes + 16, 0xff);  // NaN in every type: unwritten memory shows
  machine.runnable.clear();
  for (int index = 0; index < machine.threads; ++index) {
    Fiber* fiber = machine.fibers[index].get();
    fiber->thread = Thread{};
    fiber->thread.index = index;
    fiber->context.start(fiber->stack, enter);
    machine.runnable.push_back(fiber);
  }
  while (!machine.runnable.empty()) {
    machine.current = next();
    machine.scheduler.switch_to(machine.current->context);
  }
  if (machine.finished != machine.threads) fail("deadlock: not every thread reached a barrier or a warp's exchange");
  machine.counters.end_block();
}

}  // namespace

Counters& counters() { return machine.counters; }
Thread& thread() { return machine.current->thread; }
dim3 thread_index() { return {static_cast<unsigned>(machine.current->thread.index), 0, 0}; }
dim3 block_index() { return machine.block; }
unsigned epoch() { return machine.epoch; }
std::size_t shared_size() { return machine.shared_bytes; }

unsigned char* shared() {
  auto address = reinterpret_cast<std::uintptr_t>(machine.shared.data());
  return machine.shared.data() + (16 - address % 16) % 16;
}

void barrier() {
  if (++machine.at_barrier < machine.threads) {
    give_way();
    return;
  }
  machine.at_barrier = 0;
  ++machine.epoch;
  for (auto& fiber : machine.fibers) {
    if (fiber.get() != machine.current && fiber->thread.index < machine.threads) machine.runnable.push_back(fiber.get());
  }
  machine.runnable.push_back(machine.current);
  give_way();
}

const unsigned char* exchange(const void* value, std::size_t bytes, void (*combine)(unsigned char*)) {
  Thread& self = thread();
  Warp& warp = machine.warps[self.warp()];
  unsigned char* slots = warp.slots[warp.turn];
  std::memcpy(slots + self.lane() * kSlot, value, bytes);
  if (++warp.arrived < 32) {
    give_way();
  } else {
    warp.arrived = 0;
    warp.turn ^= 1;
    if (combine) combine(slots);
    for (int lane = 0; lane < 32; ++lane) {
      Fiber* fiber = machine.fibers[self.warp() * 32 + lane].get();
      if (fiber != machine.current) machine.runnable.push_back(fiber);
    }
    machine.runnable.push_back(machine.current);
    give_way();
  }
  ++self.syncs;
  return slots;
}

void fail(const std::string& what) {
  if (machine.error.empty()) machine.error = what;
}

void schedule(std::uint64_t seed) {
  machine.seed = seed;
  machine.random.seed(seed);
}

std::string take_error() { return std::move(machine.error); }

cudaError_t run_grid(dim3 grid, int threads, std::size_t shared_bytes, const std::function<void()>& kernel) {
  while (machine.fibers.size() < static_cast<std::size_t>(threads)) machine.fibers.push_back(std::make_unique<Fiber>());
  machine.threads = threads;
  machine.shared_bytes = shared_bytes;
  machine.kernel = &kernel;
  if (shared_bytes > 48 * 1024) fail("more than 48 KiB of shared memory without opting in");
  machine.counters.begin_launch(shared_bytes);
  std::vector<dim3> blocks;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) blocks.emplace_back(x, y, z);
  if (machine.seed != 0) std::shuffle(blocks.begin(), blocks.end(), machine.random);
  for (dim3 block : blocks) {
    run_block(block);
    if (!machine.error.empty()) return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

}  // namespace shim
