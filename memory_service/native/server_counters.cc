#include "server_counters.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace engram {

Histogram::Histogram(const std::vector<double>& bounds) : counts_(bounds.size() + 1) {
  for (const double bound : bounds) bounds_.push_back(std::llround(bound * 1e9));
}

void Histogram::observe(Clock::duration duration) {
  const int64_t nanoseconds = std::chrono::duration_cast<std::chrono::nanoseconds>(duration).count();
  const auto bucket = std::lower_bound(bounds_.begin(), bounds_.end(), nanoseconds) - bounds_.begin();
  counts_[bucket].fetch_add(1, std::memory_order_relaxed);
  nanoseconds_.fetch_add(nanoseconds, std::memory_order_relaxed);
}

std::pair<std::vector<uint64_t>, double> Histogram::take() {
  std::vector<uint64_t> counts;
  for (auto& count : counts_) counts.push_back(count.exchange(0));
  return {counts, static_cast<double>(nanoseconds_.exchange(0)) * 1e-9};
}

void TableCounts::count_blocks(const RowIds& ids, const TableShape& shape) {
  if (turn_.fetch_add(1, std::memory_order_relaxed) % kEvery) return;
  const size_t width = shape.id_bytes();
  const std::lock_guard<std::mutex> lock(mutex_);
  if (blocks_.size() < shape.blocks()) blocks_.resize(shape.blocks());
  for (size_t i = 0; i < ids.count; i++) {
    uint64_t id = 0;
    std::memcpy(&id, ids.bytes + i * width, width);
    blocks_[id >> shape.block_shift]++;
  }
}

std::pair<uint64_t, std::vector<std::pair<uint64_t, uint64_t>>> TableCounts::take_blocks() {
  std::vector<std::pair<uint64_t, uint64_t>> taken;
  const std::lock_guard<std::mutex> lock(mutex_);
  for (size_t block = 0; block < blocks_.size(); block++) {
    if (blocks_[block]) taken.emplace_back(block, blocks_[block]);
  }
  std::fill(blocks_.begin(), blocks_.end(), 0);
  return {blocks_.size(), std::move(taken)};
}

}  // namespace engram
