// The cache of memory_service/client/cache.py: the same sets, ages and choices, row by row instead of by arrays.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace engram::client {

// Packed rows of one table by id, all of one version. Safe to use from several threads.
class Cache {
 public:
  static constexpr uint32_t kMostCalls = 1 << 24;  // of `put`, before its scratch is cleared

  // Args:
  //   rows: rows of the table.
  //   sets, ways: number of sets, and of slots of each, at most 255.
  //   calls: number of calls of `put` after which its scratch is cleared, at most kMostCalls.
  Cache(uint64_t rows, size_t sets, size_t ways, size_t row_bytes, uint32_t calls = kMostCalls);

  struct Hits {
    size_t count;
    int64_t version;  // of the table that they belong to; -1 before the first
  };

  // Copy cached rows.
  //
  // Args:
  //   ids: `count` distinct row ids.
  //   out: receives the cached rows, each at the place of its id, or one after the other if `together`.
  //   found: receives which of them were cached.
  //   at_least: the version that rows must have; none is cached if they are older.
  Hits get(const int64_t* ids, size_t count, uint8_t* out, bool* found, bool together, int64_t at_least = -1);
  // Cache distinct rows that are not cached yet, unless they are older than those that are. A newer version empties the
  // cache first. Returns how many others left.
  size_t put(const int64_t* ids, size_t count, const uint8_t* rows, int64_t version);
  int64_t version() const;
  size_t row_bytes() const { return row_bytes_; }

 private:
  template <typename Tag>
  size_t get(const Tag* tags, const int64_t* ids, size_t count, uint8_t* out, bool* found, bool together);
  template <typename Tag>
  size_t put(Tag* tags, const int64_t* ids, size_t count, const uint8_t* rows);
  void empty();

  size_t set_of(int64_t id) const;
  size_t oldest(size_t set) const;

  const bool wide_;  // whether tags are uint64, else uint32
  const size_t sets_, ways_, row_bytes_;
  const uint32_t calls_;
  mutable std::mutex mutex_;  // guards what follows
  int64_t version_ = -1;
  const size_t tags_bytes_;
  const std::unique_ptr<void, void (*)(void*)> tags_;     // id of the row in each slot, [sets, ways]
  std::vector<uint8_t> ages_;                             // age of the row in each slot, [sets, ways]
  const std::unique_ptr<uint8_t, void (*)(void*)> rows_;  // packed row in each slot, [sets * ways, row_bytes]
  std::vector<uint32_t> claims_;  // by set: call << 8 | rows that this call has put there
  uint32_t call_ = 0;
};

}  // namespace engram::client
