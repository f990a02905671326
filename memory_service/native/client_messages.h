// Messages of the service Rows on the client's side: ids and rows are copied once, between the message and their place.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "client_cache.h"

namespace engram::client {

// A table as requests name it.
struct Table : std::enable_shared_from_this<Table> {
  std::string name;
  std::string fingerprint;  // 32 bytes
  uint64_t rows = 0;
  size_t row_bytes = 0;
  int block_shift = 0;
  std::shared_ptr<Cache> cache;  // of hot rows; null for none

  size_t id_bytes() const { return rows <= uint64_t{1} << 32 ? 4 : 8; }
};

// A LookupRequest, serialised.
grpc::ByteBuffer encode_request(const Table& table, uint64_t request_id, uint64_t epoch, double now, double deadline,
                                uint64_t min_version, const int64_t* ids, size_t count);

// What a LookupReply says before its rows, and a way to read those.
class Reply {
 public:
  // Throws std::runtime_error if the message is no LookupReply.
  explicit Reply(const grpc::ByteBuffer& message);

  uint64_t request_id = 0;
  int status = 0;
  std::string message;
  uint64_t epoch = 0;
  uint64_t version = 0;
  uint64_t first_row = 0;
  size_t rows_bytes = 0;

  // Copy all bytes of rows to a place that has room for them.
  void copy_rows(uint8_t* place) const;

 private:
  grpc::ByteBuffer message_;  // shares the bytes of the message
  size_t rows_at_ = 0;
};

}  // namespace engram::client
