#include "client_buffers.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <new>

namespace engram::client {

namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kMostFree = size_t{256} << 20;  // bytes that are kept for later

size_t capacity_for(size_t bytes) {
  size_t step = 4096;  // an eighth of the size at most, so that requests of similar sizes use the same memory
  while (step * 16 < bytes) step *= 2;
  return (bytes + step) / step * step;
}

uint8_t* allocate(size_t capacity) {
  const size_t alignment = capacity >= kHugePage ? kHugePage : kAlignment;
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, capacity) != 0) throw std::bad_alloc();
  if (alignment == kHugePage) madvise(memory, capacity, MADV_HUGEPAGE);
  return static_cast<uint8_t*>(memory);
}

}  // namespace

Buffers::Buffers() : process_(getpid()) {}

Buffers::~Buffers() {
  for (const auto& [capacity, memory] : free_) std::free(memory);
}

std::shared_ptr<uint8_t> Buffers::take(size_t bytes) {
  size_t capacity = capacity_for(bytes);
  uint8_t* memory = nullptr;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = free_.lower_bound(capacity);
    if (found != free_.end() && found->first <= 2 * capacity) {
      capacity = found->first;
      memory = found->second;
      free_.erase(found);
      free_bytes_ -= capacity;
    }
  }
  if (memory == nullptr) memory = allocate(capacity);
  return std::shared_ptr<uint8_t>(
      memory, [pool = shared_from_this(), capacity](uint8_t* used) { pool->give_back(used, capacity); });
}

void Buffers::give_back(uint8_t* memory, size_t capacity) noexcept {
  if (getpid() != process_) return;  // after a fork another thread of the parent may have held the lock for ever
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (free_bytes_ + capacity <= kMostFree) {
      try {
        free_.emplace(capacity, memory);
        free_bytes_ += capacity;
        return;
      } catch (const std::bad_alloc&) {  // then it is freed instead
      }
    }
  }
  std::free(memory);
}

}  // namespace engram::client
