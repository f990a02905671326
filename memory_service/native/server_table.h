// The rows of one table, as the threads of the server read them. Python owns the memory, the blocks and their lifetime:
// memory_service/shard/table.py.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace engram {

// Row ids as LookupRequest.row_ids carries them.
struct RowIds {
  const char* bytes;
  size_t count;
  bool wide;  // uint64, else uint32
};

// Between the readers of a memory and its writer, as memory_service/shard/gate.py is for readers in Python.
class ReadGate {
 public:
  // Waits while the gate is closed.
  uint64_t enter();
  void leave(uint64_t generation);
  // Waits until every reader that is inside now has left, but not for readers that enter later.
  void drain();
  // Waits until no reader is inside, and keeps those that come waiting until `open`. For one writer at a time.
  void close();
  void open();

 private:
  std::mutex mutex_;
  std::condition_variable left_, opened_;
  bool closed_ = false;
  uint64_t generation_ = 0;
  std::map<uint64_t, size_t> inside_;  // number of readers by the generation in which they entered
};

struct TableShape {
  std::string name;
  std::string fingerprint;  // 32 bytes
  uint64_t rows;
  unsigned block_shift;  // row >> block_shift is the row's block
  size_t row_bytes;

  size_t id_bytes() const { return rows <= uint64_t{1} << 32 ? 4 : 8; }
  uint64_t block_rows() const { return uint64_t{1} << block_shift; }
  uint64_t blocks() const { return (rows + block_rows() - 1) >> block_shift; }
};

// Brings rows up to the table's version, in Python: ids, their number, whether they are uint64. Returns the version that
// they have then, or -1 if that failed. It takes the GIL, and waits until no reader is inside.
using Freshen = int64_t (*)(const char* ids, size_t count, int wide);

class Table {
 public:
  // `arena` is the first of the rows that `delta` leads to: the arena row of `row` is row + delta[row >> block_shift],
  // below zero for a block that is not held.
  Table(TableShape shape, const uint8_t* arena, std::vector<int64_t> delta, uint64_t version);

  const TableShape& shape() const { return shape_; }
  uint64_t version() const { return version_.load(std::memory_order_acquire); }
  void set_version(uint64_t version) { version_.store(version, std::memory_order_release); }

  // Makes readers that come from now on see these blocks; those inside go on with the blocks they have found.
  void publish(std::vector<int64_t> delta);
  void drain() { gate_.drain(); }
  // Until `resume`, no reader is inside, and the arena may be written.
  void pause() { gate_.close(); }
  void resume() { gate_.open(); }
  // Has `freshen` called before rows are read; null for tables whose rows are always up to date.
  void set_freshen(Freshen freshen) { freshen_.store(freshen, std::memory_order_release); }
  // Brings rows up to date before they are read, outside any Reading. Returns the version for which they are: if
  // version() is another one once they are read, read again. Throws a Refusal if that failed.
  uint64_t freshen(const RowIds& ids) const;
  // From its return on, the arena is not read any more.
  void close();

  // While it lives, the blocks that it sees keep their memory.
  class Reading {
   public:
    explicit Reading(Table& table);
    ~Reading() { table_.gate_.leave(generation_); }
    Reading(const Reading&) = delete;
    Reading& operator=(const Reading&) = delete;

    // Throws a Refusal unless the table has all these rows and they are held.
    void check(const RowIds& ids) const;
    // Copies ids[first, first + count) into `out`. Throws a Refusal if one is not held.
    void gather(const RowIds& ids, size_t first, size_t count, uint8_t* out);
    // The first byte of a held block. Throws a Refusal if it is not held.
    const uint8_t* block(uint64_t block) const;

   private:
    template <class Id>
    void check(const char* ids, size_t count) const;
    template <class Id>
    void gather(const char* ids, size_t count, uint8_t* out);
    [[noreturn]] void refuse_range(uint64_t row) const;
    [[noreturn]] void refuse_not_held(uint64_t row) const;

    Table& table_;
    const uint64_t generation_;
    const std::shared_ptr<const std::vector<int64_t>> delta_;
  };

 private:
  std::shared_ptr<const std::vector<int64_t>> delta() const;

  const TableShape shape_;
  const uint8_t* const arena_;
  std::atomic<uint64_t> version_;
  std::atomic<Freshen> freshen_{nullptr};
  ReadGate gate_;
  mutable std::mutex mutex_;  // guards the pointer, not what it points to
  std::shared_ptr<const std::vector<int64_t>> delta_;
};

}  // namespace engram
