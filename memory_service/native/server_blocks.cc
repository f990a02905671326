#include "server_blocks.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "server_rows.h"

namespace engram {

namespace {

constexpr size_t kChunkBytes = 1 << 20;  // of rows in one message

}  // namespace

BlockStream::BlockStream(Call& call, RowsServer& server)
    : call_(call), shard_(server.shard()), admitted_(server.admission().stream(call.client())) {}

void BlockStream::on_message(grpc::ByteBuffer& message) {
  parse(message, wanted_);
  message.Clear();
  table_ = shard_.table(wanted_.table()).table;
  const TableShape& shape = table_->shape();
  if (wanted_.fingerprint() != shape.fingerprint) {
    throw Refusal(pb::STATUS_FINGERPRINT_MISMATCH,
                  "table " + quoted(shape.name) + " on " + shard_.name + " has another fingerprint");
  }
  if (static_cast<uint64_t>(wanted_.blocks_size()) > shape.blocks()) {
    throw Refusal(pb::STATUS_REQUEST_TOO_LARGE, std::to_string(wanted_.blocks_size()) + " blocks of table " +
                                                    quoted(shape.name) + ": it has fewer");
  }
  next();
}

void BlockStream::next() {
  if (sent_rows_ == block_rows_) {
    if (next_block_ == wanted_.blocks_size()) return call_.finish();
    copy_block(wanted_.blocks(next_block_++));
  }
  write_chunk();
}

void BlockStream::copy_block(uint32_t block) {
  const TableShape& shape = table_->shape();
  rows_.reset();  // one block at a time
  { Table::Reading(*table_).block(block); }  // refuses numbers beyond the table before they are multiplied
  const uint64_t first = uint64_t{block} << shape.block_shift;
  block_rows_ = std::min(shape.block_rows(), shape.rows - first);
  std::vector<uint64_t> ids(block_rows_);
  std::iota(ids.begin(), ids.end(), first);
  for (bool fresh = false; !fresh;) {
    const uint64_t version = table_->freshen({reinterpret_cast<const char*>(ids.data()), ids.size(), true});
    const Table::Reading reading(*table_);
    const uint8_t* const rows = reading.block(block);
    fresh = version == table_->version();
    if (!fresh) continue;
    header_.set_version(version);
    rows_.reset(new uint8_t[block_rows_ * shape.row_bytes]);
    std::memcpy(rows_.get(), rows, block_rows_ * shape.row_bytes);
  }
  XXH128_canonical_t digest;
  XXH128_canonicalFromHash(&digest, XXH3_128bits(rows_.get(), block_rows_ * shape.row_bytes));
  header_.set_block(block);
  header_.set_digest(digest.digest, sizeof digest.digest);
  sent_rows_ = 0;
}

void BlockStream::write_chunk() {
  const size_t row_bytes = table_->shape().row_bytes;
  const uint64_t count = std::min<uint64_t>(std::max<size_t>(1, kChunkBytes / row_bytes), block_rows_ - sent_rows_);
  BufferPtr chunk = take_buffer(count * row_bytes);
  std::memcpy(chunk->data, rows_.get() + sent_rows_ * row_bytes, count * row_bytes);
  header_.set_first_row(sent_rows_);
  sent_rows_ += count;
  call_.write(with_rows(header_, pb::BlockChunk::kRowsFieldNumber, std::move(chunk), count * row_bytes));
}

}  // namespace engram
