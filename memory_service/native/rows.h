// Copying rows from random places of a memory that is larger than the processor's caches.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace engram {

constexpr size_t kRowsAhead = 12;  // rows that are fetched into the cache before they are copied

// Fetch bytes into the processor's cache, to be read or written. Not a call: GCC drops calls of functions that do nothing
// but this.
template <bool kWrite = false>
[[gnu::always_inline]] inline void prefetch(const void* at, size_t bytes) {
  constexpr size_t kLine = 64;
  const char* const end = static_cast<const char*>(at) + bytes;
  for (const char* line = static_cast<const char*>(at); line < end; line += kLine) __builtin_prefetch(line, kWrite);
  __builtin_prefetch(end - 1, kWrite);
}

// Copy rows from anywhere to one place, one after the other.
inline void copy_rows(const uint8_t* const* rows, size_t count, size_t row_bytes, uint8_t* out) {
  for (size_t i = 0; i < std::min(kRowsAhead, count); ++i) prefetch(rows[i], row_bytes);
  for (size_t i = 0; i < count; ++i) {
    if (i + kRowsAhead < count) prefetch(rows[i + kRowsAhead], row_bytes);
    std::memcpy(out + i * row_bytes, rows[i], row_bytes);
  }
}

}  // namespace engram
