// One call: who may make it, and the order of its operations. What its messages mean is up to a handler.
#pragma once

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/support/byte_buffer.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <string>

#include "server_errors.h"

namespace engram {

class Call;
class RowsServer;

// The methods that are called when an operation has ended. Each begins one operation of the call, as its last act but
// for preparing the next; a Refusal that it throws ends the call.
class Handler {
 public:
  virtual ~Handler() = default;
  virtual void on_message(grpc::ByteBuffer& message) = 0;
  virtual void on_written() = 0;
  virtual void on_end() = 0;  // the client has sent its last message, or is gone
};

// An object for each call. At most one operation is under way, and one thread at a time acts on the call: if the
// operation that it began ends before it is done, it goes on with that, so that no other thread has to wait for it.
class Call {
 public:
  // Asks for a call.
  explicit Call(RowsServer& server);
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // Goes on after an operation, or has the thread do so that acts on the call; deletes the call after its last one.
  void proceed(bool ok) noexcept;
  // Ends a call that is idle, and tells one that is busy that it should; from any thread.
  void leave();

  // For its handler: the operations, one at a time.
  void read();
  void write(const grpc::ByteBuffer& message);
  void finish();

  // A busy call is not ended by `leave`. The second returns whether the call should end, and stays busy if so.
  void begin_work();
  bool end_work();

  std::string client() const;

 private:
  enum class State { kRequested, kReading, kWriting, kFinishing };

  bool act() noexcept;
  void begin();
  void step(bool ok);
  void refuse(pb::Status status, const std::string& message) noexcept;
  void end(const grpc::Status& status);

  RowsServer& server_;
  grpc::GenericServerContext context_;
  grpc::GenericServerAsyncReaderWriter stream_;
  grpc::ByteBuffer message_;
  State state_ = State::kRequested;
  bool under_way_ = true;  // an operation
  std::atomic<int> events_{0};  // operations that have ended and were not acted on yet
  bool ok_ = false;             // of the last of these
  bool registered_ = false;
  std::unique_ptr<Handler> handler_;
  std::mutex mutex_;  // guards what follows
  bool busy_ = false;
  bool leaving_ = false;
};

}  // namespace engram
