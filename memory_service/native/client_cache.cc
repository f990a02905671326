#include "client_cache.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "rows.h"

namespace engram::client {

namespace {

constexpr uint8_t kOldest = 15;   // age of the row that goes next
constexpr uint8_t kUnused = 255;  // age of a slot without a row
constexpr size_t kAhead = 12;     // rows whose sets are on their way from memory
constexpr size_t kHugePage = size_t{2} << 20;

template <typename Tag>
int find(const Tag* tags, size_t ways, Tag tag) {
  int found = -1;
  for (size_t way = 0; way < ways; ++way) found = tags[way] == tag ? static_cast<int>(way) : found;
  return found;
}

// Memory that is committed as it is used.
void* allocate(size_t bytes) {
  const size_t whole = (std::max<size_t>(bytes, 1) + kHugePage - 1) / kHugePage * kHugePage;
  void* memory = nullptr;
  if (posix_memalign(&memory, kHugePage, whole) != 0) throw std::bad_alloc();
  madvise(memory, whole, MADV_HUGEPAGE);
  return memory;
}

}  // namespace

Cache::Cache(uint64_t rows, size_t sets, size_t ways, size_t row_bytes, uint32_t calls)
    : wide_(rows >= uint64_t{1} << 32),  // one value of a tag stands for no row
      sets_(sets),
      ways_(ways),
      row_bytes_(row_bytes),
      calls_(calls),
      tags_bytes_(sets * ways * (wide_ ? sizeof(uint64_t) : sizeof(uint32_t))),
      tags_(allocate(tags_bytes_), std::free),
      ages_(sets * ways),
      rows_(static_cast<uint8_t*>(allocate(sets * ways * row_bytes)), std::free),
      claims_(sets) {
  empty();
}

// The set of an id: the upper half of its hash, scaled to the number of sets.
size_t Cache::set_of(int64_t id) const {
  const uint64_t hash = static_cast<uint64_t>(id) * 0x9E3779B97F4A7C15u;
  return ((hash >> 32) * static_cast<uint64_t>(sets_)) >> 32;
}

int64_t Cache::version() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return version_;
}

void Cache::empty() {
  std::memset(tags_.get(), 0xFF, tags_bytes_);  // in each tag the value that stands for no row
  std::fill(ages_.begin(), ages_.end(), kUnused);
}

Cache::Hits Cache::get(const int64_t* ids, size_t count, uint8_t* out, bool* found, bool together, int64_t at_least) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (version_ < at_least) {
    std::fill(found, found + count, false);
    return {0, version_};
  }
  const size_t hits = wide_ ? get(static_cast<const uint64_t*>(tags_.get()), ids, count, out, found, together)
                            : get(static_cast<const uint32_t*>(tags_.get()), ids, count, out, found, together);
  return {hits, version_};
}

template <typename Tag>
size_t Cache::get(const Tag* tags, const int64_t* ids, size_t count, uint8_t* out, bool* found, bool together) {
  constexpr size_t kSoon = kAhead / 2;  // ids whose rows are on their way from memory
  int ways[kSoon];                      // where these are, below zero if they are not cached
  size_t hits = 0;
  for (size_t next = 0; next < count + kSoon; ++next) {
    if (next + kSoon < count) {
      const size_t set = set_of(ids[next + kSoon]);
      prefetch(tags + set * ways_, ways_ * sizeof(Tag));
      prefetch(ages_.data() + set * ways_, ways_);
    }
    if (next >= kSoon) {
      const size_t i = next - kSoon;
      const int way = ways[i % kSoon];
      found[i] = way >= 0;
      if (way >= 0) {
        const size_t slot = set_of(ids[i]) * ways_ + way;
        ages_[slot] >>= 1;
        std::memcpy(out + (together ? hits : i) * row_bytes_, rows_.get() + slot * row_bytes_, row_bytes_);
        ++hits;
      }
    }
    if (next < count) {
      const size_t set = set_of(ids[next]);
      const int way = find(tags + set * ways_, ways_, static_cast<Tag>(ids[next]));
      ways[next % kSoon] = way;
      if (way >= 0) prefetch(rows_.get() + (set * ways_ + way) * row_bytes_, row_bytes_);
    }
  }
  return hits;
}

size_t Cache::put(const int64_t* ids, size_t count, const uint8_t* rows, int64_t version) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (version < version_) return 0;
  if (version > version_) {
    empty();
    version_ = version;
  }
  if (++call_ == calls_) {
    std::fill(claims_.begin(), claims_.end(), 0);
    call_ = 1;
  }
  return wide_ ? put(static_cast<uint64_t*>(tags_.get()), ids, count, rows)
               : put(static_cast<uint32_t*>(tags_.get()), ids, count, rows);
}

// The slot of a set whose row goes next: the first of the oldest.
size_t Cache::oldest(size_t set) const {
  const uint8_t* const age = ages_.data() + set * ways_;
  unsigned best = 0;  // age and way in one number, since a branch for each would be mispredicted
  for (unsigned way = 0; way < ways_; ++way) best = std::max(best, unsigned{age[way]} << 8 | (255 - way));
  return 255 - (best & 255);
}

template <typename Tag>
size_t Cache::put(Tag* tags, const int64_t* ids, size_t count, const uint8_t* rows) {
  std::vector<size_t> fresh;  // a row that was here when the call began is not put again, even if it leaves meanwhile
  fresh.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    if (i + kAhead < count) {
      const size_t ahead = set_of(ids[i + kAhead]);
      prefetch(tags + ahead * ways_, ways_ * sizeof(Tag));
      prefetch(ages_.data() + ahead * ways_, ways_);
      prefetch(claims_.data() + ahead, sizeof(uint32_t));
    }
    const size_t set = set_of(ids[i]);
    if (find(tags + set * ways_, ways_, static_cast<Tag>(ids[i])) < 0) fresh.push_back(i);
  }
  size_t evicted = 0;
  for (size_t next = 0; next < fresh.size(); ++next) {
    if (next + kAhead < fresh.size()) {
      const size_t set = set_of(ids[fresh[next + kAhead]]);
      prefetch<true>(rows_.get() + (set * ways_ + oldest(set)) * row_bytes_, row_bytes_);
    }
    const size_t i = fresh[next];
    const size_t set = set_of(ids[i]);
    uint32_t& claim = claims_[set];
    if (claim >> 8 != call_) claim = call_ << 8;
    if ((claim & 0xFF) == ways_) continue;  // the rows that this call has put there first stay
    ++claim;
    const size_t leaving = oldest(set);
    uint8_t* const age = ages_.data() + set * ways_;
    const uint8_t step = kOldest - std::min(age[leaving], kOldest);
    evicted += age[leaving] != kUnused;
    for (size_t way = 0; way < ways_; ++way) age[way] += step;
    age[leaving] = kOldest - 1;
    const size_t slot = set * ways_ + leaving;
    tags[slot] = static_cast<Tag>(ids[i]);
    std::memcpy(rows_.get() + slot * row_bytes_, rows + i * row_bytes_, row_bytes_);
  }
  return evicted;
}

}  // namespace engram::client
