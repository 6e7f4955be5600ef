#include "emu/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(GANKERNELS_TSAN)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif
#if defined(__SANITIZE_ADDRESS__)
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
void __asan_unpoison_memory_region(const volatile void* p, size_t bytes);
}
#endif

namespace gankernels::emu {
namespace {

constexpr size_t kStack = 128 << 10, kPage = 4096;

#if defined(__x86_64__)
// Saves what a function must preserve, changes stacks, and goes on there. Ends in a jump: a return
// would be predicted wrong every time.
extern "C" void gankernels_emu_switch(void** from, void* to);
asm(R"(
.text
.align 16
.type gankernels_emu_switch, @function
gankernels_emu_switch:
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
  popq %rcx
  jmp *%rcx
.size gankernels_emu_switch, .-gankernels_emu_switch
)");

struct Context {
  void* stack_pointer = nullptr;
  void prepare(char* bottom, void (*start)()) {
    auto* top = reinterpret_cast<uintptr_t*>(bottom + kStack);
    *--top =
        0;  // the return address of a caller that is none; leaves the stack aligned as by a call
    *--top = reinterpret_cast<uintptr_t>(start);
    for (int i = 0; i < 6; ++i) *--top = 0;
    stack_pointer = top;
  }
  static void change(Context& from, Context& to) {
    gankernels_emu_switch(&from.stack_pointer, to.stack_pointer);
  }
};
#else
struct Context {
  ucontext_t context;
  void prepare(char* bottom, void (*start)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = bottom;
    context.uc_stack.ss_size = kStack;
    context.uc_link = nullptr;
    makecontext(&context, start, 0);
  }
  static void change(Context& from, Context& to) { swapcontext(&from.context, &to.context); }
};
#endif

}  // namespace

struct Fiber::State {
  void (*entry)(void*);
  void* argument;
  char* memory;  // a page that must not be touched, then the stack
  Context self, scheduler;
#if defined(__SANITIZE_ADDRESS__)
  void *own_fake = nullptr, *scheduler_fake = nullptr;
  const void* scheduler_bottom = nullptr;
  size_t scheduler_size = 0;
#endif
#if defined(GANKERNELS_TSAN)
  static constexpr int kIdentities = 2;
  int turn = 0;
  void *identities[kIdentities] = {}, *identity = nullptr, *scheduler_identity = nullptr;
#endif

  char* bottom() const { return memory + kPage; }

  // A new fiber finds itself here. One OS thread at a time runs the engine.
  static inline State* starting = nullptr;
  static void start();
};

void Fiber::State::start() {
  State* state = starting;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &state->scheduler_bottom, &state->scheduler_size);
#endif
  state->entry(state->argument);
  __builtin_trap();
}

Fiber::Fiber(void (*entry)(void*), void* argument) : state_(std::make_unique<State>()) {
  void* memory = mmap(nullptr, kStack + kPage, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, kPage, PROT_NONE);
  state_->entry = entry;
  state_->argument = argument;
  state_->memory = static_cast<char*>(memory);
  restart();
}

Fiber::~Fiber() {
#if defined(GANKERNELS_TSAN)
  for (void* identity : state_->identities)
    if (identity) __tsan_destroy_fiber(identity);
#endif
  munmap(state_->memory, kStack + kPage);
}

void Fiber::restart() {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(state_->bottom(), kStack);  // of frames that never returned
  state_->own_fake = nullptr;
#endif
#if defined(GANKERNELS_TSAN)
  if (state_->identity) {  // what it did comes before what its scheduler does now
    void* scheduler = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(state_->identity, 1);
    __tsan_switch_to_fiber(scheduler, 0);
  }
#endif
  state_->self.prepare(state_->bottom(), State::start);
}

// ThreadSanitizer needs 100 microseconds to make an identity, so that two take turns: races with the
// block that ran before are seen, and not those with the one before that, where a thread of the same
// identity was.
void Fiber::renew_identity() {
#if defined(GANKERNELS_TSAN)
  // New pages are memory that nobody accessed yet. Frames of kernels need no more than these.
  constexpr size_t kUsed = 8 << 10;
  if (mmap(state_->bottom() + kStack - kUsed, kUsed, PROT_READ | PROT_WRITE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
    throw std::bad_alloc();
  state_->self.prepare(state_->bottom(), State::start);
  state_->turn = (state_->turn + 1) % State::kIdentities;
  void*& identity = state_->identities[state_->turn];
  if (!identity) identity = __tsan_create_fiber(0);
  state_->identity = identity;
#endif
}

void Fiber::enter() {
  State::starting = state_.get();
#if defined(GANKERNELS_TSAN)
  state_->scheduler_identity = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(state_->identity, 1);  // 1: the switch puts nothing in order
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&state_->scheduler_fake, state_->bottom(), kStack);
#endif
  Context::change(state_->scheduler, state_->self);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(state_->scheduler_fake, nullptr, nullptr);
#endif
}

void Fiber::leave() {
#if defined(GANKERNELS_TSAN)
  __tsan_switch_to_fiber(state_->scheduler_identity, 1);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&state_->own_fake, state_->scheduler_bottom,
                                 state_->scheduler_size);
#endif
  Context::change(state_->self, state_->scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(state_->own_fake, &state_->scheduler_bottom,
                                  &state_->scheduler_size);
#endif
}

#if defined(GANKERNELS_TSAN)
void tsan_release(void* sync) {
  __tsan_release(sync);
}
void tsan_acquire(void* sync) {
  __tsan_acquire(sync);
}
#endif

}  // namespace gankernels::emu
