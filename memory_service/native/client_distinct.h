// Deduplication of row ids by hashing.
#pragma once

#include <cstddef>
#include <cstdint>

namespace engram::client {

constexpr size_t kMostIds = size_t{1} << 20;  // each thread keeps a table for as many as it has met: 16 MiB

// Drop repeats, keeping the order in which ids first appear.
//
// Args:
//   asked: `count` row ids, at most kMostIds.
//   rows: rows of the table.
//   ids: receives the distinct ids; has room for `count`.
//   inverse: receives the index into `ids` of each asked id.
//
// Returns the number of distinct ids, or -1 if an id is not in the table.
int64_t distinct(const int64_t* asked, size_t count, uint64_t rows, int64_t* ids, int64_t* inverse);

}  // namespace engram::client
