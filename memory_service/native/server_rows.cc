#include "server_rows.h"

#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>

#include <algorithm>
#include <stdexcept>

namespace engram {

namespace {

constexpr unsigned kMostThreads = 4;  // beyond, the network and not the threads is what lookups wait for
constexpr char kTokenKey[] = "authorization";

std::shared_ptr<grpc::ServerCredentials> credentials(const ServerTls& tls) {
  if (tls.certificate.empty()) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions options(tls.client_ca.empty()
                                                ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                                                : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.pem_root_certs = tls.client_ca;
  options.pem_key_cert_pairs.push_back({tls.key, tls.certificate});
  return grpc::SslServerCredentials(options);
}

// In constant time: how long a refusal takes says nothing about how much of a guess was right.
bool equal(const grpc::string_ref& given, const std::string& secret) {
  volatile unsigned char differing = given.size() != secret.size();
  for (size_t i = 0; i < given.size(); i++) {
    differing = differing | static_cast<unsigned char>(given.data()[i] ^ secret[i % secret.size()]);
  }
  return !differing;
}

}  // namespace

RowsServer::RowsServer(std::shared_ptr<Shard> shard, const std::string& address, const ServerTls& tls,
                       ServerToken token, const Limits& limits, int max_message_bytes)
    : shard_(std::move(shard)), admission_(shard_->name, limits), token_(std::move(token)) {
  grpc::ServerBuilder builder;
  builder.RegisterAsyncGenericService(&service_);
  builder.AddListeningPort(address, credentials(tls), &port_);
  builder.SetMaxReceiveMessageSize(max_message_bytes);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // This gRPC unpacks a message before it looks at its length, so that a small one may take any memory.
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_GZIP, false);
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_DEFLATE, false);
  events_ = builder.AddCompletionQueue();
  server_ = builder.BuildAndStart();
  if (!server_ || !port_) {
    events_->Shutdown();
    void* tag;
    bool ok;
    while (events_->Next(&tag, &ok)) continue;
    throw std::runtime_error("gRPC cannot listen there");
  }
  const size_t threads = std::min(std::max(std::thread::hardware_concurrency(), 1u), kMostThreads);
  threads_ = std::make_unique<Threads>(*events_, threads, [this](void* tag, bool ok) {
    handed_over_.load(std::memory_order_acquire);
    static_cast<Call*>(tag)->proceed(ok);
  });
  request_another();
}

RowsServer::~RowsServer() { stop(std::chrono::duration<double>(0)); }

bool RowsServer::stop(std::chrono::duration<double> grace) {
  const auto deadline =
      std::chrono::system_clock::now() + std::chrono::duration_cast<std::chrono::system_clock::duration>(grace);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (std::exchange(stopping_, true)) return true;
    for (Call* const call : calls_) call->leave();
  }
  server_->Shutdown(deadline);  // breaks off what is left at the deadline
  const bool in_time = std::chrono::system_clock::now() < deadline;
  {
    // Shutdown only cancels calls: they still have to end, and gRPC aborts the process if that finds its queue gone.
    std::unique_lock<std::mutex> lock(mutex_);
    none_left_.wait(lock, [this] { return !requested_; });
  }
  events_->Shutdown();
  threads_.reset();
  return in_time;
}

void RowsServer::request(grpc::GenericServerContext& context, grpc::GenericServerAsyncReaderWriter& stream,
                         Call* call) {
  hand_over();
  service_.RequestCall(&context, &stream, events_.get(), events_.get(), call);
}

void RowsServer::request_another() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (stopping_) return;
    requested_++;
  }
  new Call(*this);  // deletes itself
}

void RowsServer::began(Call* call) {
  const std::lock_guard<std::mutex> lock(mutex_);
  calls_.insert(call);
  if (stopping_) call->leave();
}

void RowsServer::ended(Call* call, bool registered) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (registered) calls_.erase(call);
  if (!--requested_) none_left_.notify_all();
}

void RowsServer::check_token(const grpc::ServerContext& context) const {
  if (token_.header.empty()) return;
  const auto [first, last] = context.client_metadata().equal_range(kTokenKey);
  const auto count = std::distance(first, last);
  if (count == 1 && equal(first->second, token_.header)) return;
  std::string text = token_.refusal;
  const std::string what = count == 0 ? "none" : count == 1 ? "another one" : std::to_string(count) + " of them";
  text.replace(text.find("{what}"), 6, what);
  throw Refusal(pb::STATUS_UNAUTHENTICATED, text);
}

}  // namespace engram
