// Rows of a shard on the same machine, read from its shared memory: memory_service/client/mapped_table.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

namespace engram::client {

// A table of a live process. Python owns the mappings, and keeps them for as long as `owner` lives.
class MappedTable {
 public:
  // Args:
  //   arena: [arena_rows, row_bytes].
  //   header: the sequence number and the version of memory_service/protocol/shared_layout.py.
  //   delta: [blocks]; the arena row of `row` is row + delta[row >> block_shift].
  //   pidfd: descriptor of the process, which is duplicated; readable once that has ended.
  // Throws std::system_error if there is no descriptor left.
  MappedTable(const uint8_t* arena, uint64_t arena_rows, size_t row_bytes, const int64_t* header, const int64_t* delta,
              size_t blocks, unsigned block_shift, int pidfd, std::shared_ptr<void> owner);
  ~MappedTable();
  MappedTable(const MappedTable&) = delete;
  MappedTable& operator=(const MappedTable&) = delete;

  // Copy rows, and return the version that they belong to. None if the process has ended, does not hold all rows, or is
  // changing its layout.
  std::optional<uint64_t> read(const int64_t* ids, size_t count, uint8_t* out) const;

 private:
  bool copy(const int64_t* ids, size_t count, uint8_t* out) const;
  int64_t field(size_t index) const { return __atomic_load_n(header_ + index, __ATOMIC_ACQUIRE); }

  const uint8_t* const arena_;
  const uint64_t arena_rows_;
  const size_t row_bytes_;
  const int64_t* const header_;
  const int64_t* const delta_;
  const size_t blocks_;
  const unsigned block_shift_;
  const int pidfd_;
  const std::shared_ptr<void> owner_;
};

}  // namespace engram::client
