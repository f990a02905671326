#include "server_errors.h"

#include <algorithm>
#include <cstdio>

namespace engram {

grpc::StatusCode code_of(pb::Status status) {
  switch (status) {
    case pb::STATUS_OK: return grpc::StatusCode::OK;
    case pb::STATUS_INVALID_REQUEST: return grpc::StatusCode::INVALID_ARGUMENT;
    case pb::STATUS_REQUEST_TOO_LARGE:
    case pb::STATUS_OUT_OF_MEMORY:
    case pb::STATUS_RESOURCE_EXHAUSTED: return grpc::StatusCode::RESOURCE_EXHAUSTED;
    case pb::STATUS_UNKNOWN_TABLE: return grpc::StatusCode::NOT_FOUND;
    case pb::STATUS_ROW_OUT_OF_RANGE: return grpc::StatusCode::OUT_OF_RANGE;
    case pb::STATUS_FINGERPRINT_MISMATCH:
    case pb::STATUS_WRONG_EPOCH:
    case pb::STATUS_SNAPSHOT_ERROR:
    case pb::STATUS_OLD_VERSION: return grpc::StatusCode::FAILED_PRECONDITION;
    case pb::STATUS_UNAVAILABLE: return grpc::StatusCode::UNAVAILABLE;
    case pb::STATUS_DEADLINE_EXCEEDED: return grpc::StatusCode::DEADLINE_EXCEEDED;
    case pb::STATUS_UNAUTHENTICATED: return grpc::StatusCode::UNAUTHENTICATED;
    default: return grpc::StatusCode::INTERNAL;
  }
}

std::string quoted(const std::string& text) {
  const bool single = text.find('\'') == std::string::npos || text.find('"') != std::string::npos;
  const char quote = single ? '\'' : '"';
  std::string out(1, quote);
  for (const char c : text) {
    if (c == quote || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      char escaped[5];
      std::snprintf(escaped, sizeof escaped, "\\x%02x", static_cast<unsigned>(c));
      out += escaped;
    } else {
      out += c;
    }
  }
  return out + quote;
}

std::string as_utf8(const std::string& bytes) {
  std::string out;
  for (size_t at = 0; at < bytes.size();) {
    const unsigned char first = bytes[at];
    const size_t length = first < 0x80 ? 1 : first >= 0xC2 && first < 0xE0 ? 2 : first >= 0xE0 && first < 0xF0 ? 3 : 0;
    bool whole = length && at + length <= bytes.size();
    for (size_t i = 1; whole && i < length; i++) whole = (static_cast<unsigned char>(bytes[at + i]) & 0xC0) == 0x80;
    out += whole ? bytes.substr(at, length) : "\xEF\xBF\xBD";
    at += whole ? length : 1;
  }
  return out;
}

std::string shortened(const std::string& text, size_t characters) {
  size_t at = 0;
  for (; at < text.size(); at++) {
    const bool starts = (static_cast<unsigned char>(text[at]) & 0xC0) != 0x80;  // else it continues a character
    if (starts && characters-- == 0) break;
  }
  return text.substr(0, at);
}

std::string grouped(uint64_t number) {
  std::string digits = std::to_string(number);
  for (size_t at = digits.size(); at > 3; at -= 3) digits.insert(at - 3, ",");
  return digits;
}

std::string hex(const std::string& bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  out.reserve(2 * bytes.size());
  for (const unsigned char byte : bytes) {
    out += kDigits[byte >> 4];
    out += kDigits[byte & 15];
  }
  return out;
}

}  // namespace engram
