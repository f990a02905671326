// The lookups of one client down one stream, answered one after the other: _Stream of server/rows_door.py.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "server_admission.h"
#include "server_call.h"
#include "server_counters.h"
#include "server_shard.h"

namespace engram {

// Measures how long requests waited to be read, without comparing the clocks of two machines: the smallest difference
// between arrival and sending so far is taken for a request that did not wait.
class QueueClock {
 public:
  // By how many microseconds this request took longer than the fastest so far.
  int64_t waited_us(uint64_t sent_us, int64_t now_us);

 private:
  std::optional<int64_t> least_;
};

class LookupStream : public Handler {
 public:
  // Throws a Refusal if the client has too many streams.
  LookupStream(Call& call, RowsServer& server);
  ~LookupStream() override;

  void on_message(grpc::ByteBuffer& message) override;
  void on_written() override;
  void on_end() override { call_.finish(); }

 private:
  bool expired();
  void check();
  void next_reply();
  void next_rows();
  void send();
  void refuse(pb::Status status, const std::string& message);
  void end_request();

  Call& call_;
  RowsServer& server_;
  Shard& shard_;
  const std::string client_;
  const std::pair<Quota::Hold, Quota::Hold> admitted_;
  QueueClock queue_;

  // The request that is being answered.
  pb::LookupRequest request_;
  Clock::time_point read_, deadline_, writing_;
  Clock::duration gathering_{};
  Quota::Hold bytes_;
  ServedTable served_;
  RowIds ids_{};
  size_t next_row_ = 0;
  uint64_t version_ = 0;                   // of the rows in the replies so far
  bool answering_ = false;                 // until its last reply is written
  bool answered_ = true;                   // its last reply has been made
  std::optional<grpc::ByteBuffer> reply_;  // made while the one before it travels
};

}  // namespace engram
