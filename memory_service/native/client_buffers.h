// Memory that lookups use again and again: fresh pages cost more than the rows that are copied into them.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

namespace engram::client {

// Memory of a pool, which gets it back once the last owner lets go.
class Buffers : public std::enable_shared_from_this<Buffers> {
 public:
  Buffers();
  ~Buffers();
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;

  // At least so many bytes, aligned to a cache line, with anything in them. Throws std::bad_alloc.
  std::shared_ptr<uint8_t> take(size_t bytes);

 private:
  void give_back(uint8_t* memory, size_t capacity) noexcept;

  const pid_t process_;
  std::mutex mutex_;
  std::multimap<size_t, uint8_t*> free_;  // by capacity
  size_t free_bytes_ = 0;
};

}  // namespace engram::client
