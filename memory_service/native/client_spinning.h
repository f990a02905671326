// Whether a thread that waits for rows looks for them again and again for a moment before it sleeps.
//
// Where a processor is idle, that spares putting it to sleep and waking it, which takes as long as a small lookup; where
// other threads want the processor, or the answer takes longer, it only delays. No figure of the machine tells which, so
// both are tried now and then, and the faster one is taken: each for some waits in a row, since a processor needs some to
// find out how idle it is.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace engram::client {

class Spinning {
 public:
  static constexpr double kSeconds = 100e-6;  // at most, of one wait

  // Whether the next wait is to spin.
  bool next() {
    const uint32_t turn = turn_.fetch_add(1, std::memory_order_relaxed);
    const uint32_t row = turn / kRow % kRows;
    settled_.store(turn % kRow >= kRow / 2, std::memory_order_relaxed);
    if (row == 0) return true;
    if (row == kRows / 2) return false;
    const float spun = seconds_[true].load(std::memory_order_relaxed);
    const float slept = seconds_[false].load(std::memory_order_relaxed);
    return slept > 0 && spun > 0 && spun < slept;
  }

  // A wait of one of the two kinds took so long.
  void took(bool spun, double seconds) {
    if (!settled_.load(std::memory_order_relaxed)) return;
    std::atomic<float>& average = seconds_[spun];
    const float before = average.load(std::memory_order_relaxed);
    if (before == 0) return average.store(static_cast<float>(seconds), std::memory_order_relaxed);
    const float now = std::min(static_cast<float>(seconds), kOutlier * before);
    average.store(before + (now - before) * kWeight, std::memory_order_relaxed);
  }

 private:
  static constexpr uint32_t kRow = 16;       // waits of one kind, of which the second half counts
  static constexpr uint32_t kRows = 32;      // of which one spins and one does not, whatever was faster
  static constexpr float kWeight = 0.125f;   // of the last wait in the average
  static constexpr float kOutlier = 4;       // a wait counts as so many times the average at most

  std::atomic<uint32_t> turn_{0};
  std::atomic<bool> settled_{false};
  std::atomic<float> seconds_[2] = {{0}, {0}};  // average of waits that slept at once, and of those that spun
};

}  // namespace engram::client
