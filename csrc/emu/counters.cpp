#include "emu/counters.h"

#include <algorithm>

namespace gankernels::emu {

Counters Tally::result() const {
  Counters result = counts;
  for (const auto& [key, site] : sites_) result.sites.push_back(site.total);
  return result;
}

void Tally::reset() {
  counts = {};
  sites_.clear();
}

void Tally::profile(uintptr_t p, size_t bytes, const Where& where) {
  const Unwatched unwatched;
  SiteData& site = sites_[{where.function_name(), uint64_t{where.line()} << 32 | where.column()}];
  if (site.total.where.empty()) site.total.where = text_of(where) + " " + where.function_name();
  site.occurrences.resize(kMaxThreads);
  const int thread = current.thread;
  const uint64_t key = uint64_t{site.occurrences[thread]++} << 8 | (thread / kLanes);
  Group& group = site.groups[key];
  group.bytes += static_cast<int64_t>(bytes);
  for (uintptr_t s = p / 32; s <= (p + bytes - 1) / 32; ++s)
    if (std::find(group.sectors.begin(), group.sectors.end(), s) == group.sectors.end())
      group.sectors.push_back(s);
}

void Tally::end_block() {
  if (!profiling) return;
  for (auto& [key, site] : sites_) {
    for (const auto& [occurrence, group] : site.groups) {
      ++site.total.accesses;
      site.total.bytes += group.bytes;
      site.total.sectors += static_cast<int64_t>(group.sectors.size());
    }
    site.groups.clear();
    site.occurrences.assign(kMaxThreads, 0);
  }
}

}  // namespace gankernels::emu
