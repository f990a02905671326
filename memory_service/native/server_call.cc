#include "server_call.h"

#include <cstdio>
#include <exception>
#include <utility>

#include "server_blocks.h"
#include "server_lookups.h"
#include "server_rows.h"

namespace engram {

namespace {

constexpr char kLookup[] = "/engram.memory.v1.Rows/Lookup";
constexpr char kBlocks[] = "/engram.memory.v1.Rows/Blocks";

}  // namespace

Call::Call(RowsServer& server) : server_(server), stream_(&context_) {
  server.request(context_, stream_, this);
}

void Call::proceed(bool ok) noexcept {
  ok_ = ok;
  if (events_.fetch_add(1, std::memory_order_acq_rel)) return;  // the thread that acts on the call goes on with it
  do {
    if (!act()) {
      server_.ended(this, registered_);
      delete this;
      return;
    }
  } while (events_.fetch_sub(1, std::memory_order_acq_rel) > 1);
}

// Acts on the end of an operation. False after the last one.
bool Call::act() noexcept {
  const bool ok = ok_;
  under_way_ = false;
  if (state_ == State::kFinishing || (state_ == State::kRequested && !ok)) {
    if (busy_) server_.threads().idler();
    return false;
  }
  try {
    step(ok);
  } catch (const Refusal& refusal) {
    refuse(refusal.status, refusal.what());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "engram memory %s: a call failed: %s\n", server_.shard().name.c_str(), error.what());
    refuse(pb::STATUS_INTERNAL, error.what());
  }
  return true;
}

void Call::step(bool ok) {
  switch (state_) {
    case State::kRequested:
      server_.request_another();
      return begin();
    case State::kReading:
      return ok ? handler_->on_message(message_) : handler_->on_end();
    case State::kWriting:
      return ok ? handler_->on_written() : end(grpc::Status::CANCELLED);  // the client is gone
    case State::kFinishing:
      return;
  }
}

void Call::begin() {
  server_.check_token(context_);  // before a message is read
  if (context_.method() == kLookup) {
    handler_ = std::make_unique<LookupStream>(*this, server_);
  } else if (context_.method() == kBlocks) {
    begin_work();
    handler_ = std::make_unique<BlockStream>(*this, server_);
  } else {
    return end(grpc::Status(grpc::StatusCode::UNIMPLEMENTED, "Method not found!"));
  }
  registered_ = true;
  server_.began(this);
  read();
}

void Call::leave() {
  const std::lock_guard<std::mutex> lock(mutex_);
  leaving_ = true;
  if (!busy_) context_.TryCancel();
}

void Call::begin_work() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!std::exchange(busy_, true)) server_.threads().busier();
}

bool Call::end_work() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (leaving_) return true;
  busy_ = false;
  server_.threads().idler();
  return false;
}

void Call::read() {
  state_ = State::kReading;
  under_way_ = true;
  server_.hand_over();
  stream_.Read(&message_, this);
}

void Call::write(const grpc::ByteBuffer& message) {
  state_ = State::kWriting;
  under_way_ = true;
  server_.hand_over();
  stream_.Write(message, this);
}

void Call::finish() { end(grpc::Status::OK); }

void Call::refuse(pb::Status status, const std::string& message) noexcept {
  if (under_way_) return context_.TryCancel();  // which makes the operation end, and the call after it
  try {
    context_.AddTrailingMetadata(kStatusKey, std::to_string(static_cast<int>(status)));
    end(grpc::Status(code_of(status), shortened(message)));
  } catch (const std::exception&) {  // no memory even for this
    context_.TryCancel();
    end(grpc::Status::CANCELLED);
  }
}

void Call::end(const grpc::Status& status) {
  handler_.reset();  // gives back what the call holds before the client can know of its end
  state_ = State::kFinishing;
  under_way_ = true;
  server_.hand_over();
  stream_.Finish(status, this);
}

std::string Call::client() const { return client_of(context_); }

}  // namespace engram
