#include "emu/counters.h"

#include <algorithm>

namespace gankernels::emu {

Counters Tally::result() const {
  Counters result = counts;
  for (const auto& [key, site] : sites_) result.sites.push_back(site.total);
  for (const auto& [key, site] : bank_sites_) {
    result.banks.push_back(site.total);
    result.banks.back().mean_ways =
        static_cast<double>(site.ways) / static_cast<double>(site.parts);
  }
  return result;
}

void Tally::reset() {
  counts = {};
  forget_profile();
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

void Tally::profile_shared(const void* p, size_t bytes, const char* verb, bool atomic,
                           const Where& where) {
  const Unwatched unwatched;
  BankSiteData& site = bank_sites_[{current.kernel, where.function_name(),
                                    uint64_t{where.line()} << 32 | where.column(), verb}];
  if (site.bytes == 0) {
    site.bytes = bytes;
    site.atomic = atomic;
    site.total.kernel = current.kernel;
    site.total.where = std::string(verb) + " at " + text_of(where) + " " + where.function_name();
    site.occurrences.resize(kMaxThreads);
  }
  const int thread = current.thread;
  auto& [pass, k] = site.occurrences[thread];
  if (pass != passes_[thread]) pass = passes_[thread], k = 0;
  const uint64_t key = uint64_t{pass} << 32 | uint64_t{k++} << 8 | (thread / kLanes);
  site.groups[key].emplace_back(thread % kLanes, reinterpret_cast<uintptr_t>(p) / 4);
}

// Words go through 32 banks, each of which gives one word at a time to any number of lanes. Lanes of 8
// bytes go in halves of the warp, of 16 bytes in quarters, and of more in pieces of 16 bytes.
void Tally::BankSiteData::add(const Lanes& lanes) {
  ++total.accesses;
  const int words = std::max(1, static_cast<int>(std::min<size_t>(bytes, 16) / 4));
  const int pieces = std::max(1, static_cast<int>(bytes / 16)), together = kLanes / words;
  for (int piece = 0; piece < pieces; ++piece) {
    for (int first = 0; first < kLanes; first += together) {
      std::array<std::vector<uintptr_t>, kLanes> banks;
      size_t most = 0;
      for (const auto& [lane, word] : lanes) {
        if (lane < first || lane >= first + together) continue;
        for (uintptr_t w = word + piece * words; w < word + (piece + 1) * words; ++w) {
          auto& bank = banks[w % kLanes];
          if (atomic || std::find(bank.begin(), bank.end(), w) == bank.end()) bank.push_back(w);
          most = std::max(most, bank.size());
        }
      }
      if (most == 0) continue;
      ++parts;
      ways += static_cast<int64_t>(most);
      total.max_ways = std::max(total.max_ways, static_cast<int64_t>(most));
    }
  }
}

void Tally::end_block() {
  if (!profiling) return;
  passes_.fill(0);
  for (auto& [key, site] : bank_sites_) {
    for (const auto& [occurrence, lanes] : site.groups) site.add(lanes);
    site.groups.clear();
    site.occurrences.assign(kMaxThreads, {});
  }
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
