#include "emu/races.h"

#include <string>

namespace gankernels::emu {

void Races::begin_launch() {
  released_.clear();
  first_serial_ = serial_ + 1;
}

void Races::begin_block(int threads) {
  ++serial_;
  epoch_ = 0;
  acquired_.clear();
  warp_clocks_.fill(1);
  for (int id = 0; id < threads; ++id) {
    Clock& clock = clocks_[id];
    clock.fences = 0;
    clock.seen.clear();
  }
}

void Races::end_launch() {
  ++serial_;
  first_serial_ = serial_ + 1;
}

Record Races::host_write() {
  end_launch();
  return {serial_, 0, 0, 0, 0, false, false};
}

bool Races::ordered_by_fences(const Record& past) const {
  for (const Acquired& acquired : acquired_) {
    if (acquired.thread != current.thread && acquired.epoch >= epoch_) continue;
    for (size_t i = 0; i < acquired.count; ++i) {
      const Release& release = (*acquired.releases)[i];
      if (release.block != past.block) continue;
      if (past.epoch < release.epoch) return true;
      if (past.thread == release.thread && (past.fences < release.fences || past.atomic))
        return true;
    }
  }
  return false;
}

void Races::race(const Record& past, const char* did, const char* what, const Where& where) const {
  const std::string who =
      past.many_blocks       ? "several blocks"
      : past.thread == kMany ? "several threads"
                             : "thread " + std::to_string(past.thread) +
                                   (past.block == serial_ ? " of this block" : " of another block");
  fail(std::string("a race on ") + what + ": " + who + " " + did + " it before, unordered,", where);
}

void Races::atomic(const void* p) {
  const Unwatched unwatched;
  Clock& self = clocks_[current.thread];
  Releases& releases = released_[p];
  if (!releases.empty()) self.seen.emplace_back(&releases, releases.size());
  if (self.fences > 0) {
    releases.push_back(
        {serial_, self.fence_epoch, static_cast<uint16_t>(current.thread), self.fences});
    self.to_release = &releases;
  }
}

void Races::fence() {
  flush();
  const Unwatched unwatched;
  Clock& self = clocks_[current.thread];
  ++self.fences;
  self.fence_epoch = epoch_;
  for (const auto& [releases, count] : self.seen) {
    acquired_.push_back({releases, count, static_cast<uint16_t>(current.thread), epoch_});
    tsan_acquire(const_cast<Releases*>(releases));
  }
  self.seen.clear();
}

}  // namespace gankernels::emu
