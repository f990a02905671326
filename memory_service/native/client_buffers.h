// Memory that lookups use again and again: fresh pages cost more than the rows that are copied into them.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>

namespace engram::client {

// Memory of a pool, which gets it back once the last owner lets go.
class Buffers : public std::enable_shared_from_this<Buffers> {
 public:
  using Memory = std::shared_ptr<uint8_t>;

  // Without `allocate`, which returns so many bytes that last as long as they are owned, memory is the heap's.
  explicit Buffers(std::function<Memory(size_t)> allocate = nullptr);
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;

  // At least so many bytes, with anything in them. Throws what `allocate` throws, or std::bad_alloc.
  Memory take(size_t bytes);

 private:
  void give_back(Memory memory, size_t capacity) noexcept;

  const std::function<Memory(size_t)> allocate_;
  const pid_t process_;
  std::mutex mutex_;
  std::multimap<size_t, Memory> free_;  // by capacity
  size_t free_bytes_ = 0;
};

}  // namespace engram::client
