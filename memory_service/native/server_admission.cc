#include "server_admission.h"

#include <regex>

#include "server_errors.h"

namespace engram {

namespace {

constexpr char kOpenStreams[] = "{held} streams of {client} are open";
constexpr char kAsked[] = "{amount} bytes of rows requested while {held} are under way to {client}";
constexpr char kFewer[] = "use fewer client processes";

void fill_in(std::string& text, const std::string& field, const std::string& value) {
  const size_t at = text.find(field);
  if (at != std::string::npos) text.replace(at, field.size(), value);
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::string without_percents(const std::string& text) {
  std::string out;
  for (size_t at = 0; at < text.size(); at++) {
    const bool escaped = text[at] == '%' && at + 2 < text.size() && hex_digit(text[at + 1]) >= 0 &&
                         hex_digit(text[at + 2]) >= 0;
    out += escaped ? static_cast<char>(16 * hex_digit(text[at + 1]) + hex_digit(text[at + 2])) : text[at];
    if (escaped) at += 2;
  }
  return out;
}

}  // namespace

Quota::Quota(std::string shard, std::string field, uint64_t limit, std::string text, std::string remedy)
    : shard_(std::move(shard)),
      field_(std::move(field)),
      text_(std::move(text)),
      remedy_(std::move(remedy)),
      limit_(limit) {}

Quota::Hold Quota::take(const std::string& client, uint64_t amount) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto entry = held_.find(client);
  const uint64_t held = entry == held_.end() ? 0 : entry->second;
  if (amount > limit_ || held > limit_ - amount) {
    throw Refusal(pb::STATUS_RESOURCE_EXHAUSTED, refusal(client, held, amount));
  }
  uint64_t& counted = held_[client];
  Hold hold(*this, client, amount);
  counted += amount;  // last: what comes before may find no memory
  return hold;
}

void Quota::give_back(const std::string& client, uint64_t amount) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto entry = held_.find(client);
  if (entry == held_.end()) return;
  entry->second -= amount;
  if (!entry->second) held_.erase(entry);  // hosts that have left would pile up otherwise
}

std::string Quota::refusal(const std::string& client, uint64_t held, uint64_t amount) const {
  std::string text = text_;
  fill_in(text, "{held}", grouped(held));
  fill_in(text, "{amount}", grouped(amount));
  fill_in(text, "{client}", client);
  return shard_ + ": " + text + ", the limit is " + grouped(limit_) + " (" + field_ + "): " + remedy_ +
         ", or start the shard with a higher " + field_;
}

Admission::Admission(const std::string& shard, const Limits& limits)
    : streams_(shard, "streams", limits.streams, kOpenStreams, kFewer),
      client_streams_(shard, "streams_per_client", limits.streams_per_client, kOpenStreams, kFewer),
      bytes_(shard, "request_bytes_per_client", limits.request_bytes_per_client, kAsked, "ask for fewer at a time") {}

std::pair<Quota::Hold, Quota::Hold> Admission::stream(const std::string& client) {
  Quota::Hold of_all = streams_.take("all clients");
  return {std::move(of_all), client_streams_.take(client)};
}

std::string client_of(const grpc::ServerContext& context) {
  if (const auto auth = context.auth_context()) {
    for (const auto& identity : auth->GetPeerIdentity()) return as_utf8({identity.data(), identity.size()});
  }
  return host_of(context.peer());
}

std::string host_of(const std::string& peer) {
  static const std::regex port(":[0-9]+$");
  static const std::regex mapped_ipv4("ipv6:\\[::ffff:([0-9.]+)\\]");
  return std::regex_replace(std::regex_replace(without_percents(peer), port, ""), mapped_ipv4, "ipv4:$1");
}

}  // namespace engram
