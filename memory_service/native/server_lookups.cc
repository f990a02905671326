#include "server_lookups.h"

#include <algorithm>
#include <cstdio>
#include <exception>

#include "server_buffers.h"
#include "server_rows.h"

namespace engram {

namespace {

constexpr size_t kChunkBytes = 800 << 10;   // of rows in one reply: the next is gathered while it travels
constexpr size_t kKeepRequest = 1 << 20;    // of a request's memory, for the next one of the stream

int64_t microseconds(Clock::time_point time) {
  return std::chrono::duration_cast<std::chrono::microseconds>(time.time_since_epoch()).count();
}

}  // namespace

int64_t QueueClock::waited_us(uint64_t sent_us, int64_t now_us) {
  const int64_t delay = static_cast<int64_t>(static_cast<uint64_t>(now_us) - sent_us);  // any origin: it may wrap
  least_ = std::min(least_.value_or(delay), delay);
  return static_cast<int64_t>(static_cast<uint64_t>(delay) - static_cast<uint64_t>(*least_));
}

LookupStream::LookupStream(Call& call, RowsServer& server)
    : call_(call),
      server_(server),
      shard_(server.shard()),
      client_(call.client()),
      admitted_(server.admission().stream(client_)) {
  shard_.counters.streams++;
}

LookupStream::~LookupStream() { shard_.counters.streams--; }

void LookupStream::on_message(grpc::ByteBuffer& message) {
  read_ = Clock::now();
  call_.begin_work();
  parse(message, request_);
  if (!request_.request_id()) {
    throw Refusal(pb::STATUS_INVALID_REQUEST,
                  "the request has request_id 0, by which a shard says that it stops: count from 1");
  }
  message.Clear();
  next_row_ = 0;
  gathering_ = {};
  answering_ = true;
  answered_ = false;
  if (expired()) return end_request();
  try {
    check();
  } catch (const Refusal& refusal) {
    refuse(refusal.status, refusal.what());
  }
  if (!reply_) next_reply();
  writing_ = Clock::now();
  reply_ ? send() : end_request();
}

bool LookupStream::expired() {
  const int64_t waited_us = queue_.waited_us(request_.sent_us(), microseconds(read_));
  const int64_t timeout_us = int64_t{1000} * request_.timeout_ms();
  shard_.counters.queue.observe(std::chrono::microseconds(waited_us));
  if (waited_us > timeout_us) {
    shard_.counters.expired++;
    answered_ = true;
    return true;
  }
  deadline_ = read_ + std::chrono::microseconds(timeout_us - waited_us);
  return false;
}

// Throws a Refusal unless the request can be answered, before anything is allocated for its rows.
void LookupStream::check() {
  served_ = shard_.table_for_lookup(request_.table());
  const TableShape& shape = served_.table->shape();
  const std::string& bytes = request_.row_ids();
  if (bytes.size() % shape.id_bytes()) {
    throw Refusal(pb::STATUS_INVALID_REQUEST, "row_ids has " + std::to_string(bytes.size()) +
                                                  " bytes, which is not a multiple of " +
                                                  std::to_string(shape.id_bytes()));
  }
  ids_ = {bytes.data(), bytes.size() / shape.id_bytes(), shape.id_bytes() == sizeof(uint64_t)};
  bytes_ = server_.admission().request(client_, ids_.count * (sizeof(uint64_t) + shape.row_bytes));
  const Table::Reading reading(*served_.table);
  shard_.check(request_, *served_.table);
  const auto start = Clock::now();
  reading.check(ids_);
  shard_.counters.locate.observe(Clock::now() - start);
}

// Makes the next reply; none if the client has stopped waiting for more.
void LookupStream::next_reply() {
  if (next_row_ && Clock::now() > deadline_) {
    shard_.counters.expired++;
    answered_ = true;
    return;
  }
  try {
    next_rows();
  } catch (const Refusal& refusal) {
    refuse(refusal.status, refusal.what());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "engram memory %s: a lookup failed: %s\n", shard_.name.c_str(), error.what());
    refuse(pb::STATUS_INTERNAL, error.what());
  }
}

void LookupStream::next_rows() {
  const TableShape& shape = served_.table->shape();
  const size_t most = std::max<size_t>(1, kChunkBytes / shape.row_bytes);
  BufferPtr rows = take_buffer(std::min(most, ids_.count) * shape.row_bytes);
  pb::LookupReply header;
  const auto start = Clock::now();
  size_t count;
  for (bool fresh = false; !fresh;) {
    const uint64_t fresh_version = served_.table->freshen(ids_);
    Table::Reading reading(*served_.table);  // only now: a client that reads slowly keeps no block from being dropped
    header.set_epoch(shard_.check(request_, *served_.table));
    const uint64_t version = served_.table->version();
    fresh = version == fresh_version;
    if (!fresh) continue;
    if (version != version_) next_row_ = 0;  // the rows sent so far are of another version
    version_ = version;
    count = std::min(most, ids_.count - next_row_);
    reading.gather(ids_, next_row_, count, rows->data);
  }
  gathering_ += Clock::now() - start;
  header.set_request_id(request_.request_id());
  header.set_version(version_);
  header.set_first_row(next_row_);
  reply_ = with_rows(header, pb::LookupReply::kRowsFieldNumber, std::move(rows), count * shape.row_bytes);
  next_row_ += count;
  if (next_row_ < ids_.count) return;
  answered_ = true;
  shard_.counters.gather.observe(gathering_);
  served_.counts->lookups++;
  served_.counts->rows += ids_.count;
  served_.counts->bytes += ids_.count * shape.row_bytes;
  served_.counts->count_blocks(ids_, shape);
}

// Writes a reply, and makes the one after it while it travels.
void LookupStream::send() {
  call_.write(*reply_);
  reply_.reset();
  if (!answered_) next_reply();
}

void LookupStream::on_written() {
  if (reply_) return send();
  if (answering_) {
    if (served_.table) shard_.counters.write.observe(Clock::now() - writing_);
    return end_request();
  }
  call_.read();  // what was written is the notice that the shard is stopping
}

void LookupStream::refuse(pb::Status status, const std::string& message) {
  served_ = {};
  answered_ = true;
  shard_.counters.refused[status]++;
  pb::LookupReply reply;
  reply.set_request_id(request_.request_id());
  reply.set_status(status);
  reply.set_message(shortened(message));
  reply.set_epoch(shard_.serving()->active);
  reply_ = serialised(reply);
}

void LookupStream::end_request() {
  const auto now = Clock::now();
  shard_.counters.latency.observe(now - read_);
  bytes_ = {};
  served_ = {};
  answering_ = false;
  if (request_.SpaceUsedLong() > kKeepRequest) pb::LookupRequest().Swap(&request_);
  if (!call_.end_work()) return call_.read();
  pb::LookupReply goodbye;
  goodbye.set_status(pb::STATUS_UNAVAILABLE);
  goodbye.set_message(shard_.name + " is stopping");
  call_.write(serialised(goodbye));
}

}  // namespace engram
