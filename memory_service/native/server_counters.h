// What the server counts. Python takes the counts over into its own metrics whenever they are read.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "server_errors.h"
#include "server_table.h"

namespace engram {

using Clock = std::chrono::steady_clock;

// A histogram of durations.
class Histogram {
 public:
  // `bounds`: upper bounds of the buckets in seconds, inclusive, ascending; one more bucket has no bound.
  explicit Histogram(const std::vector<double>& bounds);
  void observe(Clock::duration duration);
  // The durations in each bucket, and their sum in seconds, since it was last called.
  std::pair<std::vector<uint64_t>, double> take();

 private:
  std::vector<int64_t> bounds_;  // in nanoseconds
  std::vector<std::atomic<uint64_t>> counts_;
  std::atomic<int64_t> nanoseconds_{0};
};

struct Counters {
  explicit Counters(const std::vector<double>& bounds)
      : latency(bounds), queue(bounds), locate(bounds), gather(bounds), write(bounds) {}

  Histogram latency, queue, locate, gather, write;
  std::atomic<uint64_t> expired{0};
  std::atomic<int64_t> streams{0};
  std::array<std::atomic<uint64_t>, pb::Status_ARRAYSIZE> refused{};
};

// Counts of the lookups in one table.
class TableCounts {
 public:
  std::atomic<uint64_t> lookups{0}, rows{0}, bytes{0};

  // Counts the rows asked of each block, in one of eight lookups, which is enough to find hot blocks.
  void count_blocks(const RowIds& ids, const TableShape& shape);
  // Number of blocks of the table, and blocks with the rows counted since it was last called.
  std::pair<uint64_t, std::vector<std::pair<uint64_t, uint64_t>>> take_blocks();

 private:
  static constexpr uint64_t kEvery = 8;
  std::atomic<uint64_t> turn_{0};
  std::mutex mutex_;
  std::vector<uint64_t> blocks_;
};

}  // namespace engram
