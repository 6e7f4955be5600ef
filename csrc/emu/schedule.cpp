#include "emu/schedule.h"

#include <algorithm>
#include <exception>
#include <map>
#include <numeric>
#include <vector>

namespace gankernels::emu {
namespace {

constexpr int64_t kMaxBlocks = INT32_MAX;
constexpr size_t kSyncs = 2 + 2 * kMaxWarps;

}  // namespace

Schedule::Schedule(Races& races, Memory& memory, Tally& tally)
    : races_(races), memory_(memory), tally_(tally), block_sync_(new char[kSyncs]) {}

void Schedule::set_order(Order order, uint64_t seed) {
  order_ = order;
  random_state_ = seed;
}

// --- fibers ---------------------------------------------------------------------------------------

void Schedule::entry(void* thread) {
  Thread& self = *static_cast<Thread*>(thread);
  Schedule& schedule = *self.schedule;
  for (;;) {
    tsan_acquire(&schedule.host_sync_);
    try {
      (*schedule.body_)();
    } catch (Error& error) {
      if (!schedule.error_) schedule.error_ = std::make_unique<Error>(std::move(error));
    } catch (const std::exception& error) {
      if (!schedule.error_) schedule.error_ = std::make_unique<Error>(Error{error.what()});
    }
    self.state = State::kDone;
    --schedule.live_;
    schedule.races_.flush();
    tsan_release(&schedule.launch_sync_);
    self.fiber->leave();
  }
}

void Schedule::abandon() {
  for (Thread& thread : threads_)
    if (thread.state != State::kDone) {
      thread.state = State::kDone;
      thread.fiber->restart();
    }
  tally_.forget_profile();
}

// --- launches and blocks --------------------------------------------------------------------------

template <class Turn>
void Schedule::shuffle(Turn& turn) {
  for (int64_t i = static_cast<int64_t>(turn.size()) - 1; i > 0; --i)
    std::swap(turn[i], turn[random() % (i + 1)]);
}

const char* Schedule::run(const char* name, int64_t blocks, int threads,
                          const std::function<void()>& kernel) {
  current.kernel = name;
  ++tally_.counts.launches[name];
  if (threads < 1 || threads > kMaxThreads || blocks < 1 || blocks > kMaxBlocks) {
    message_ = std::string(name) + ": a launch of " + std::to_string(blocks) + " blocks of " +
               std::to_string(threads) + " threads, beyond the limits of a GPU";
    return message_.c_str();
  }
  tally_.counts.blocks[name].push_back(blocks);
  if (!tally_.executing) return nullptr;
  for (int id = 0; id < threads; ++id) {
    Thread& thread = threads_[id];
    if (thread.fiber) continue;
    thread.schedule = this;
    thread.fiber = std::make_unique<Fiber>(&Schedule::entry, &thread);
  }
  body_ = &kernel;
  races_.begin_launch();
  tally_.counts.threads += blocks * threads;
  int64_t& most = tally_.counts.shared[name];
  std::vector<int> turn(blocks);
  std::iota(turn.begin(), turn.end(), 0);
  if (order_ == Order::kDescending) std::reverse(turn.begin(), turn.end());
  if (is_random()) shuffle(turn);
  for (const int block : turn) {
    current.block = block;
    run_block(threads);
    most = std::max(most, static_cast<int64_t>(memory_.shared_bytes()));
    if (error_) break;
  }
  tsan_acquire(&launch_sync_);
  races_.end_launch();
  if (!error_) return nullptr;
  abandon();
  message_ = error_->text;
  error_.reset();
  return message_.c_str();
}

void Schedule::begin_block(int threads) {
  count_ = live_ = threads;
  waiting_ = 0;
  races_.begin_block(threads);
  memory_.begin_block();
#if defined(GANKERNELS_TSAN)  // a new allocation, unknown to it, as in Memory::begin_block
  block_sync_.reset();
  block_sync_.reset(new char[kSyncs]);
#endif
  for (Warp& warp : warps_) warp.arrived = 0;
  for (int id = 0; id < threads; ++id) {
    threads_[id].state = State::kReady;
    threads_[id].fiber->renew_identity();
  }
  tsan_release(&host_sync_);
}

void Schedule::run_block(int threads) {
  begin_block(threads);
  std::vector<int> turn(threads);
  std::iota(turn.begin(), turn.end(), 0);
  if (order_ == Order::kDescending) std::reverse(turn.begin(), turn.end());
  while (live_ > 0) {
    if (is_random()) shuffle(turn);
    bool progress = false;
    for (const int id : turn) {
      if (threads_[id].state != State::kReady) continue;
      progress = true;
      resume(id);
      if (error_) return;
    }
    if (waiting_ > 0 && waiting_ == live_ && live_ == count_)
      release_barrier();
    else if (!progress)
      nobody_can_run();
    if (error_) return;
  }
  tally_.end_block();
}

void Schedule::nobody_can_run() {
  std::map<std::string, std::vector<int>> places;
  for (int id = 0; id < count_; ++id)
    if (threads_[id].state != State::kDone)
      places[(threads_[id].state == State::kAtBarrier ? "a barrier at " : "a warp operation at ") +
             text_of(threads_[id].where)]
          .push_back(id);
  std::string text =
      std::string(current.kernel) + ": block " + std::to_string(current.block) + " cannot go on: ";
  for (const auto& [place, ids] : places) {
    text += std::to_string(ids.size()) + " threads wait at " + place + " (thread " +
            std::to_string(ids.front()) + " first); ";
  }
  text += std::to_string(count_ - live_) + " have returned";
  error_ = std::make_unique<Error>(Error{text});
}

// --- barriers and warps ---------------------------------------------------------------------------

void Schedule::barrier(const Where& where) {
  Thread& self = threads_[current.thread];
  self.state = State::kAtBarrier;
  self.where = where;
  ++waiting_;
  ++tally_.counts.barriers;
  tally_.pass();
  races_.flush();
  char* sync = &block_sync_[races_.epoch() & 1];
  tsan_release(sync);
  leave();
  tsan_acquire(sync);
}

void Schedule::release_barrier() {
  for (int id = 1; id < count_; ++id)
    if (threads_[id].where.line() != threads_[0].where.line() ||
        threads_[id].where.column() != threads_[0].where.column())
      return nobody_can_run();
  for (int id = 0; id < count_; ++id) threads_[id].state = State::kReady;
  races_.pass_barrier();
  waiting_ = 0;
}

// That the lanes of the mask are there, and all at this operation.
void Schedule::check_lanes(const Warp& warp, uint32_t mask, int xor_lanes, bool exchanging,
                           const Where& where) const {
  const int lane = current.thread % kLanes, first = current.thread - lane;
  if (!(mask >> lane & 1)) fail("a warp operation whose mask leaves out its own lane", where);
  for (int k = 0; k < kLanes; ++k)
    if ((mask >> k & 1) && (first + k >= count_ || threads_[first + k].state == State::kDone))
      fail("a warp operation names lane " + std::to_string(k) + ", which is not there", where);
  if (warp.arrived != 0 &&
      (warp.mask != mask || warp.exchanging != exchanging || warp.where.line() != where.line() ||
       warp.where.column() != where.column()))
    fail("a warp operation while other lanes are at another one, at " + text_of(warp.where), where);
  if (exchanging && !(mask >> ((lane ^ xor_lanes) % kLanes) & 1))
    fail("an exchange with a lane outside the mask", where);
}

uint64_t Schedule::warp_operation(uint32_t mask, uint64_t value, int xor_lanes, bool exchanging,
                                  const Where& where) {
  const int lane = current.thread % kLanes, first = current.thread - lane;
  const int number = current.thread / kLanes;
  Warp& warp = warps_[number];
  Thread& self = threads_[current.thread];
  check_lanes(warp, mask, xor_lanes, exchanging, where);
  tally_.pass();
  if (warp.arrived == 0) warp.mask = mask, warp.exchanging = exchanging, warp.where = where;
  warp.arrived |= 1u << lane;
  warp.values[lane] = value;
  warp.source[lane] = lane ^ xor_lanes;
  races_.flush();
  char* sync = &block_sync_[2 + number * 2 + (races_.warp_clock() & 1)];
  if (!exchanging) tsan_release(sync);
  if (warp.arrived == mask) {
    for (int k = 0; k < kLanes; ++k)
      if (mask >> k & 1) {
        threads_[first + k].result = warp.values[warp.source[k] % kLanes];
        threads_[first + k].state = State::kReady;
      }
    warp.arrived = 0;
    // Shuffles do not order memory. Partial barriers are not tracked: they order nothing here.
    if (!exchanging && mask == UINT32_MAX) races_.pass_warp_barrier(number);
  } else {
    self.state = State::kAtWarp;
    self.where = where;
    leave();
  }
  if (!exchanging) tsan_acquire(sync);
  return self.result;
}

}  // namespace gankernels::emu
