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

Buffers::Memory allocate_on_heap(size_t capacity) {
  const size_t alignment = capacity >= kHugePage ? kHugePage : kAlignment;
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, capacity) != 0) throw std::bad_alloc();
  if (alignment == kHugePage) madvise(memory, capacity, MADV_HUGEPAGE);
  return Buffers::Memory(static_cast<uint8_t*>(memory), std::free);
}

}  // namespace

Buffers::Buffers(std::function<Memory(size_t)> allocate)
    : allocate_(allocate ? std::move(allocate) : allocate_on_heap), process_(getpid()) {}

Buffers::Memory Buffers::take(size_t bytes) {
  size_t capacity = capacity_for(bytes);
  Memory memory;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = free_.lower_bound(capacity);
    if (found != free_.end() && found->first <= 2 * capacity) {
      capacity = found->first;
      memory = std::move(found->second);
      free_.erase(found);
      free_bytes_ -= capacity;
    }
  }
  if (memory == nullptr) memory = allocate_(capacity);
  uint8_t* const start = memory.get();
  return Memory(start, [pool = shared_from_this(), memory = std::move(memory), capacity](uint8_t*) mutable {
    pool->give_back(std::move(memory), capacity);
  });
}

void Buffers::give_back(Memory memory, size_t capacity) noexcept {
  if (getpid() != process_) {  // after a fork: another thread of the parent may have held the lock for ever
    new (std::nothrow) Memory(std::move(memory));
    return;
  }
  std::lock_guard<std::mutex> lock(mutex_);
  if (free_bytes_ + capacity > kMostFree) return;
  try {
    free_.emplace(capacity, std::move(memory));
    free_bytes_ += capacity;
  } catch (const std::bad_alloc&) {  // then it is freed instead
  }
}

}  // namespace engram::client
