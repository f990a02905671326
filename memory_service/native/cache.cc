// The inner loops of memory_service/client/cache.py: the same sets, ages and choices, row by row instead of by arrays.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "module.h"

namespace nb = nanobind;

namespace engram {

namespace {

using Ids = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Found = nb::ndarray<bool, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using ReadBytes = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Claims = nb::ndarray<uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename Tag>
using Tags = nb::ndarray<Tag, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

constexpr uint8_t kOldest = 15;   // age of the row that goes next
constexpr uint8_t kUnused = 255;  // age of a slot without a row
constexpr size_t kAhead = 12;     // rows whose sets are on their way from memory
constexpr size_t kLine = 64;

// The set of an id: the upper half of its hash, scaled to the number of sets.
inline size_t set_of(int64_t id, size_t sets) {
  uint64_t hash = static_cast<uint64_t>(id) * 0x9E3779B97F4A7C15ull;
  return ((hash >> 32) * static_cast<uint64_t>(sets)) >> 32;
}

// Not a call: GCC drops calls of functions that do nothing but this.
[[gnu::always_inline]] inline void prefetch(const void* at, size_t bytes) {
  for (size_t offset = 0; offset < bytes; offset += kLine) __builtin_prefetch(static_cast<const char*>(at) + offset);
}

template <typename Tag>
int find(const Tag* tags, size_t ways, Tag tag) {
  int found = -1;
  for (size_t way = 0; way < ways; ++way) found = tags[way] == tag ? static_cast<int>(way) : found;
  return found;
}

// Copies the rows of `ids` that are cached to their places in `out`; returns how many.
template <typename Tag>
size_t get(Tags<Tag> tags, Bytes ages, Bytes rows, Ids ids, Bytes out, Found found) {
  const size_t sets = tags.shape(0), ways = tags.shape(1), row_bytes = rows.shape(1), count = ids.shape(0);
  nb::gil_scoped_release released;
  size_t hits = 0;
  for (size_t i = 0; i < count; ++i) {
    if (i + kAhead < count) {
      const size_t ahead = set_of(ids.data()[i + kAhead], sets);
      prefetch(tags.data() + ahead * ways, ways * sizeof(Tag));
      prefetch(ages.data() + ahead * ways, ways);
    }
    if (i + kAhead / 2 < count) {
      const int64_t id = ids.data()[i + kAhead / 2];
      const size_t set = set_of(id, sets);
      const int way = find(tags.data() + set * ways, ways, static_cast<Tag>(id));
      if (way >= 0) prefetch(rows.data() + (set * ways + way) * row_bytes, row_bytes);
    }
    const size_t set = set_of(ids.data()[i], sets);
    const int way = find(tags.data() + set * ways, ways, static_cast<Tag>(ids.data()[i]));
    found.data()[i] = way >= 0;
    if (way < 0) continue;
    const size_t slot = set * ways + way;
    ages.data()[slot] >>= 1;
    std::memcpy(out.data() + i * row_bytes, rows.data() + slot * row_bytes, row_bytes);
    ++hits;
  }
  return hits;
}

// Caches rows that are not cached yet; returns how many others left. `claims` counts, for each set, the rows that this
// call has put there: (call << 8 | rows), so that it need not be cleared between calls.
template <typename Tag>
size_t put(Tags<Tag> tags, Bytes ages, Bytes rows, Claims claims, uint32_t call, Ids ids, ReadBytes packed) {
  const size_t sets = tags.shape(0), ways = tags.shape(1), row_bytes = rows.shape(1), count = ids.shape(0);
  nb::gil_scoped_release released;
  std::vector<size_t> fresh;  // a row that was here when the call began is not put again, even if it leaves meanwhile
  fresh.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    if (i + kAhead < count) {
      const size_t ahead = set_of(ids.data()[i + kAhead], sets);
      prefetch(tags.data() + ahead * ways, ways * sizeof(Tag));
      prefetch(ages.data() + ahead * ways, ways);
      prefetch(claims.data() + ahead, sizeof(uint32_t));
    }
    const size_t set = set_of(ids.data()[i], sets);
    if (find(tags.data() + set * ways, ways, static_cast<Tag>(ids.data()[i])) < 0) fresh.push_back(i);
  }
  size_t evicted = 0;
  for (const size_t i : fresh) {
    const Tag tag = static_cast<Tag>(ids.data()[i]);
    const size_t set = set_of(ids.data()[i], sets);
    uint32_t& claim = claims.data()[set];
    if (claim >> 8 != call) claim = call << 8;
    if ((claim & 0xFF) == ways) continue;  // the rows that this call has put there first stay
    ++claim;
    uint8_t* age = ages.data() + set * ways;
    const size_t leaving = std::max_element(age, age + ways) - age;
    const uint8_t oldest = age[leaving];
    const uint8_t step = kOldest - std::min(oldest, kOldest);
    for (size_t way = 0; way < ways; ++way) age[way] += step;
    age[leaving] = kOldest - 1;
    evicted += oldest != kUnused;
    const size_t slot = set * ways + leaving;
    tags.data()[slot] = tag;
    std::memcpy(rows.data() + slot * row_bytes, packed.data() + i * row_bytes, row_bytes);
  }
  return evicted;
}

}  // namespace

void bind_cache(nb::module_& module) {
  module.def("cache_get", &get<uint32_t>);
  module.def("cache_get", &get<uint64_t>);
  module.def("cache_put", &put<uint32_t>);
  module.def("cache_put", &put<uint64_t>);
}

}  // namespace engram
