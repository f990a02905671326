#include "client_stream.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <stdexcept>

namespace engram::client {

namespace {

constexpr char kLookup[] = "/engram.memory.v1.Rows/Lookup";
constexpr char kStatusKey[] = "engram-status";

std::shared_ptr<grpc::ChannelCredentials> credentials(const Target& target) {
  if (target.ca.empty()) return grpc::InsecureChannelCredentials();
  return grpc::SslCredentials(grpc::SslCredentialsOptions{target.ca, target.key, target.certificate});
}

}  // namespace

Stream::Stream(std::shared_ptr<Poller> poller, std::string shard, std::function<void(uint64_t)> newer_epoch,
               std::function<void(const Ending&)> ended)
    : poller_(std::move(poller)),
      shard_(std::move(shard)),
      newer_epoch_(std::move(newer_epoch)),
      ended_(std::move(ended)) {}

void Stream::open(const Target& target, const std::vector<std::pair<std::string, int>>& options) {
  grpc::ChannelArguments arguments;
  for (const auto& [name, value] : options) arguments.SetInt(name, value);
  if (!target.server_name.empty()) arguments.SetSslTargetNameOverride(target.server_name);
  const auto channel = grpc::CreateCustomChannel(target.address, credentials(target), arguments);
  std::lock_guard<std::mutex> lock(mutex_);
  if (broken_) return;
  channel_ = channel;
  stub_ = std::make_unique<grpc::GenericStub>(channel_);
  context_ = std::make_unique<grpc::ClientContext>();
  if (!target.authorization.empty()) context_->AddMetadata("authorization", target.authorization);
  call_ = stub_->PrepareCall(context_.get(), kLookup, poller_->queue());
  call_->StartCall(on_start_.begin(shared_from_this()));
  poller_->sent();  // the start counts as under way, so that somebody leads
}

uint64_t Stream::next_id() {
  std::lock_guard<std::mutex> lock(mutex_);
  return next_id_++;
}

bool Stream::send(std::shared_ptr<Request> request) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (retired()) return false;
  if (silent_since_.load(std::memory_order_relaxed) == 0) silent_since_.store(monotonic(), std::memory_order_relaxed);
  outbox_.push_back(request->id);
  pending_.emplace(request->id, std::move(request));
  poller_->sent();
  write_next();
  return true;
}

void Stream::forget(uint64_t id) {
  remove(id);  // which may free it, outside of the lock
}

void Stream::retire(const std::string& why) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (retired()) return;
  why_ = why;
  retired_.store(true, std::memory_order_release);
  write_next();
}

void Stream::break_off(const std::string& why) {
  retire(why);
  std::unordered_map<uint64_t, std::shared_ptr<Request>> pending;
  std::function<void(const Ending&)> unused;
  bool never_opened = false;
  Failure failure{Failure::kUnavailable, {}};
  {
    std::lock_guard<std::mutex> lock(mutex_);
    broken_ = true;
    pending.swap(pending_);
    never_opened = call_ == nullptr && !finished_;
    failure.message = why_;
    if (never_opened) unused.swap(ended_);
    if (context_ != nullptr) context_->TryCancel();
  }
  for (const auto& [id, request] : pending) {
    poller_->answered();
    request->fail(failure);
  }
  if (never_opened) poller_->end(over_);
  poller_->attend();  // what was deferred, and the end of the stream
}

bool Stream::stalled(double limit) const {
  const double since = silent_since_.load(std::memory_order_relaxed);
  return since != 0 && monotonic() - since > limit;
}

std::string Stream::why() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return why_;
}

bool Stream::join(double until) { return poller_->wait(over_, until); }

void Stream::started(bool ok) {
  poller_->answered();
  if (!ok) return finish();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    open_ = true;
    write_next();
  }
  read_next();
}

// Begin to write the next message, if none is being written; the lock is held.
void Stream::write_next() {
  if (!open_ || writing_ || half_closed_) return;
  while (!outbox_.empty()) {
    const auto found = pending_.find(outbox_.front());
    outbox_.pop_front();
    if (found == pending_.end()) continue;  // forgotten
    const Request& request = *found->second;
    writing_ = true;
    call_->Write(encode_request(*request.table, request.id, request.epoch, monotonic(), request.deadline,
                                request.min_version, request.ids, request.count),
                 on_write_.begin(shared_from_this()));
    return;
  }
  if (retired()) {
    half_closed_ = writing_ = true;
    call_->WritesDone(on_write_.begin(shared_from_this()));
  }
}

void Stream::written(bool ok) {
  std::lock_guard<std::mutex> lock(mutex_);
  writing_ = false;
  open_ = open_ && ok;  // a stream that broke is ended by its reader
  if (finished_) return release();
  write_next();
}

// Close the connection, once no operation is left; the lock is held.
void Stream::release() {
  call_.reset();
  context_.reset();
  stub_.reset();
  channel_.reset();
}

void Stream::read_next() { call_->Read(&incoming_, on_read_.begin(shared_from_this())); }

void Stream::was_read(bool ok) {
  if (!ok) return finish();
  grpc::ByteBuffer message;
  message.Swap(&incoming_);
  read_next();  // the next message travels while this one is copied
  try {
    receive(message);
  } catch (const std::exception& error) {
    break_off(std::string("the stream broke: ") + error.what());
  }
}

void Stream::finish() { call_->Finish(&status_, on_finish_.begin(shared_from_this())); }

void Stream::finished(bool) {
  Ending ending{status_.ok(), status_.error_message(), {}};
  const auto& trailers = context_->GetServerTrailingMetadata();
  if (const auto found = trailers.find(kStatusKey); found != trailers.end()) {
    ending.status.assign(found->second.data(), found->second.size());
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    open_ = false;
    finished_ = true;
    if (!writing_) release();
  }
  poller_->defer([stream = shared_from_this(), ending] {
    const auto ended = std::move(stream->ended_);
    ended(ending);
    stream->poller_->end(stream->over_);
  });
}

void Stream::receive(const grpc::ByteBuffer& message) {
  const Reply reply(message);
  if (reply.request_id == 0) return retire(reply.message);
  std::shared_ptr<Request> request;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = pending_.find(reply.request_id);
    if (found != pending_.end()) request = found->second;
  }
  std::unique_ptr<Failure> failure;
  const bool over = request == nullptr || take(*request, reply, &failure);
  if (over && request != nullptr && remove(request->id) == nullptr) request.reset();  // forgotten meanwhile
  {
    std::lock_guard<std::mutex> lock(mutex_);
    silent_since_.store(pending_.empty() ? 0 : monotonic(), std::memory_order_relaxed);
  }
  if (!over || request == nullptr) return;
  if (failure != nullptr) return request->fail(*failure);
  if (reply.epoch > request->epoch) newer_epoch_(request->epoch);
  request->land();
}

// Put the rows of a reply into their place. Returns whether they are the last, or `failure` is set.
bool Stream::take(Request& request, const Reply& reply, std::unique_ptr<Failure>* failure) const {
  const auto wrong = [failure](std::string message) {
    *failure = std::make_unique<Failure>(Failure{0, std::move(message)});
    return true;
  };
  if (reply.status != 0) {
    *failure = std::make_unique<Failure>(Failure{reply.status, reply.message});
    return true;
  }
  const size_t row_bytes = request.table->row_bytes;
  if (reply.rows_bytes % row_bytes != 0) {
    return wrong("a message has " + std::to_string(reply.rows_bytes) + " bytes of rows of " +
                 std::to_string(row_bytes) + " bytes each");
  }
  if (reply.version < request.min_version) {
    return wrong(shard_ + " sent rows of version " + std::to_string(reply.version) + ", asked for " +
                 std::to_string(request.min_version) + " or later");
  }
  if (reply.first_row == 0) {
    request.landed = 0;
    request.version = reply.version;
  }
  if (reply.first_row != request.landed || reply.version != request.version) {
    return wrong(shard_ + " sent rows from " + std::to_string(reply.first_row) + " on of version " +
                 std::to_string(reply.version) + ", expected them from " + std::to_string(request.landed) +
                 " on of version " + std::to_string(request.version));
  }
  const size_t rows = reply.rows_bytes / row_bytes;
  if (rows > request.count - request.landed) {
    return wrong(shard_ + " sent " + std::to_string(request.landed + rows) + " rows for " +
                 std::to_string(request.count) + " row ids");
  }
  reply.copy_rows(request.place + request.landed * row_bytes);
  request.landed += rows;
  return request.landed == request.count || rows == 0;
}

// Take a request from those under way; null if it is not one of them.
std::shared_ptr<Request> Stream::remove(uint64_t id) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = pending_.find(id);
  if (found == pending_.end()) return nullptr;
  std::shared_ptr<Request> request = std::move(found->second);
  pending_.erase(found);
  poller_->answered();
  return request;
}

}  // namespace engram::client
