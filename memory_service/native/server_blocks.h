// A copy of whole blocks for another shard: give_blocks of memory_service/shard/block_copy.py.
#pragma once

#include <memory>
#include <utility>

#include "server_admission.h"
#include "server_buffers.h"
#include "server_call.h"
#include "server_shard.h"

namespace engram {

class BlockStream : public Handler {
 public:
  // Throws a Refusal if the client has too many streams.
  BlockStream(Call& call, RowsServer& server);

  void on_message(grpc::ByteBuffer& message) override;
  void on_written() override { next(); }
  void on_end() override { call_.finish(); }

 private:
  void next();
  void copy_block(uint32_t block);
  void write_chunk();

  Call& call_;
  Shard& shard_;
  const std::pair<Quota::Hold, Quota::Hold> admitted_;
  std::shared_ptr<Table> table_;
  pb::BlocksRequest wanted_;
  int next_block_ = 0;            // index into wanted_.blocks
  pb::BlockChunk header_;         // of the block that is being sent
  std::unique_ptr<uint8_t[]> rows_;  // a copy of it: a slow receiver keeps no block from being dropped
  uint64_t block_rows_ = 0, sent_rows_ = 0;
};

}  // namespace engram
