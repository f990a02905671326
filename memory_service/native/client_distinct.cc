#include "client_distinct.h"

#include <algorithm>
#include <random>
#include <vector>

namespace engram::client {

namespace {

// Slots of an open-addressing table that is never cleared: those of an older generation are empty.
struct Slot {
  uint32_t generation;
  uint32_t place;
};

class Slots {
 public:
  // The table for so many ids, at most half full; `shift` brings a 64-bit hash into its range.
  Slot* prepare(size_t count, int* shift, uint32_t* generation) {
    int bits = 4;
    while (size_t{1} << bits < 2 * count) ++bits;
    if (slots_.size() < size_t{1} << bits || ++generation_ == 0) {
      slots_.assign(size_t{1} << bits, Slot{0, 0});
      generation_ = 1;
    }
    *shift = 64 - bits;
    *generation = generation_;
    return slots_.data();
  }

 private:
  std::vector<Slot> slots_;
  uint32_t generation_ = 0;
};

uint64_t draw() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

// A hash that depends on a number drawn at random, so that nobody can choose ids that all fall into one place.
uint64_t hash(uint64_t id, uint64_t drawn) {
  uint64_t mixed = (id ^ drawn) * 0x9E3779B97F4A7C15u;
  mixed ^= mixed >> 32;
  return mixed * 0xD6E8FEB86659FD93u;
}

}  // namespace

int64_t distinct(const int64_t* asked, size_t count, uint64_t rows, int64_t* ids, int64_t* inverse) {
  static const uint64_t kDrawn = draw();
  static thread_local Slots table;
  int shift = 0;
  uint32_t generation = 0;
  Slot* const slots = table.prepare(count, &shift, &generation);
  const size_t mask = (size_t{1} << (64 - shift)) - 1;
  // The table lies in the cache of the processor no more once the rows of a lookup went through it: it is told early
  // which slots are next.
  constexpr size_t kAhead = 16;
  size_t next[kAhead];
  for (size_t i = 0; i < std::min(kAhead, count); ++i) {
    next[i] = hash(static_cast<uint64_t>(asked[i]), kDrawn) >> shift;
    __builtin_prefetch(slots + next[i]);
  }
  uint32_t found = 0;
  for (size_t i = 0; i < count; ++i) {
    if (static_cast<uint64_t>(asked[i]) >= rows) return -1;  // negative ids are huge
    size_t at = next[i % kAhead];
    if (i + kAhead < count) {
      next[i % kAhead] = hash(static_cast<uint64_t>(asked[i + kAhead]), kDrawn) >> shift;
      __builtin_prefetch(slots + next[i % kAhead]);
    }
    while (slots[at].generation == generation && ids[slots[at].place] != asked[i]) at = (at + 1) & mask;
    if (slots[at].generation != generation) {
      slots[at] = Slot{generation, found};
      ids[found++] = asked[i];
    }
    inverse[i] = slots[at].place;
  }
  return found;
}

}  // namespace engram::client
