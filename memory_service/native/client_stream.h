// The client's end of a row stream: requests of many lookups to one shard.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/generic/generic_stub.h>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "client_messages.h"
#include "client_poller.h"

namespace engram::client {

// Why the rows of a request will not come.
struct Failure {
  static constexpr int kUnavailable = -1;  // the stream takes no requests, or broke; the message says why
  int status = 0;                          // else the status of the reply; STATUS_OK if it made no sense
  std::string message;
};

// Rows that are requested from one shard. `land` or `fail` is called once, by a thread that leads: they must be quick,
// must not throw, and leave what concerns Python to Poller::defer.
class Request {
 public:
  virtual ~Request() = default;
  virtual void land() = 0;
  virtual void fail(const Failure& failure) = 0;

  std::shared_ptr<const Table> table;
  uint64_t epoch = 0;
  double deadline = 0;
  uint64_t min_version = 0;  // oldest version of the table that is wanted
  const int64_t* ids = nullptr;
  size_t count = 0;
  uint8_t* place = nullptr;  // room for the rows of all ids
  uint64_t id = 0;           // on its stream; set by the stream
  size_t landed = 0;         // rows in place
  uint64_t version = 0;      // of the table that they belong to
};

// How to reach a shard's rows.
struct Target {
  std::string address;
  std::string ca, certificate, key;  // PEM; without a CA in plaintext
  std::string server_name;           // to expect instead of the host; "" for none
  std::string authorization;         // value of that header; "" for none
};

// How a stream ended, as gRPC says.
struct Ending {
  bool ok = false;
  std::string details;
  std::string status;  // of protos/memory.proto, in decimal; "" if the shard gave none
};

class Stream : public std::enable_shared_from_this<Stream> {
 public:
  // Args:
  //   shard: name of the shard, for messages.
  //   newer_epoch: called with the epoch of a request whose shard serves a newer one.
  //   ended: called once, deferred, when the stream has ended; not if it is broken off before it is open.
  Stream(std::shared_ptr<Poller> poller, std::string shard, std::function<void(uint64_t)> newer_epoch,
         std::function<void(const Ending&)> ended);

  // Open the stream; requests that wait are sent then. Does nothing if it was broken off before.
  void open(const Target& target, const std::vector<std::pair<std::string, int>>& options);
  // Number for the next request.
  uint64_t next_id();
  // Send a request that has a number. False, and it is dropped, if the stream takes no more requests.
  bool send(std::shared_ptr<Request> request);
  // Drop a request whose rows are no longer wanted.
  void forget(uint64_t id);
  // Take no more requests; the shard ends the stream once it has answered those under way.
  void retire(const std::string& why);
  // Take no more requests, end the stream, and fail those under way.
  void break_off(const std::string& why);
  // Whether the shard has been silent for so long while an answer was due.
  bool stalled(double limit) const;
  bool retired() const { return retired_.load(std::memory_order_acquire); }
  // Why it takes no more requests.
  std::string why() const;
  // Wait until a stream that was broken off has ended.
  bool join(double until);

 private:
  // An operation of gRPC, which keeps the stream alive until it is done.
  class Operation : public Happening {
   public:
    using Done = void (Stream::*)(bool);
    explicit Operation(Done done) : done_(done) {}
    void* begin(std::shared_ptr<Stream> stream) {
      stream_ = std::move(stream);
      stream_->poller_->hand_over();
      return static_cast<Happening*>(this);
    }
    void happen(bool ok) override {
      const std::shared_ptr<Stream> stream = std::move(stream_);  // may be the last owner
      ((*stream).*done_)(ok);
    }

   private:
    const Done done_;
    std::shared_ptr<Stream> stream_;
  };

  void started(bool ok);
  void was_read(bool ok);
  void written(bool ok);
  void finished(bool ok);
  void write_next();
  void read_next();
  void finish();
  void release();
  void receive(const grpc::ByteBuffer& message);
  bool take(Request& request, const Reply& reply, std::unique_ptr<Failure>* failure) const;
  std::shared_ptr<Request> remove(uint64_t id);

  const std::shared_ptr<Poller> poller_;
  const std::string shard_;
  const std::function<void(uint64_t)> newer_epoch_;
  std::function<void(const Ending&)> ended_;  // until it was called, or will not be

  mutable std::mutex mutex_;
  std::unordered_map<uint64_t, std::shared_ptr<Request>> pending_;
  std::deque<uint64_t> outbox_;
  uint64_t next_id_ = 1;
  std::atomic<bool> retired_{false};
  std::string why_;
  std::atomic<double> silent_since_{0};  // since when an answer, to any request, has been due; 0 for none
  bool broken_ = false;
  bool open_ = false;     // messages may be written
  bool writing_ = false;  // one is being written
  bool half_closed_ = false;
  bool finished_ = false;

  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<grpc::GenericStub> stub_;
  std::unique_ptr<grpc::ClientContext> context_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
  grpc::ByteBuffer incoming_;
  grpc::Status status_;
  Operation on_start_{&Stream::started}, on_read_{&Stream::was_read}, on_write_{&Stream::written},
      on_finish_{&Stream::finished};
  Waiting over_;
};

}  // namespace engram::client
