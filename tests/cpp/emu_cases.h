// What the tests of emulated launchers share: orders of threads, and workspaces that have an end. For
// programs of one source file.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "cases.h"
#include "emu/engine.h"

namespace cases {

namespace emu = gankernels::emu;
using emu::Order;

constexpr Order kOrders[] = {Order::kAscending, Order::kDescending, Order::kRandom,
                             Order::kSwitching};

// Calls a launcher with memory of `bytes`, and nothing in it that a kernel may rely on.
template <class Args>
const char* with_workspace(const Args& args, int64_t bytes,
                           const char* (*launcher)(const Args&, void*, void*)) {
  CHECK(bytes % 256 == 0, "a workspace of %ld", long(bytes));
  if (bytes == 0) return launcher(args, nullptr, nullptr);
  const std::unique_ptr<void, decltype(&std::free)> data(std::aligned_alloc(256, bytes),
                                                         &std::free);
  std::memset(data.get(), 0xff, bytes);
  return launcher(args, data.get(), nullptr);
}

}  // namespace cases

// Every thread of a block is a new thread to ThreadSanitizer: let it be a small one.
extern "C" const char* __tsan_default_options() {
  return "history_size=0:detect_deadlocks=0:halt_on_error=1";
}
