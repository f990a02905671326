#include "client_messages.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>
#include <grpcpp/support/proto_buffer_reader.h>
#include <grpcpp/support/slice.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "protos/memory.pb.h"

namespace engram::client {

namespace {

using engram::memory::v1::LookupReply;
using engram::memory::v1::LookupRequest;
using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;
using google::protobuf::io::CodedOutputStream;

template <typename Id>
void write_ids(uint8_t* place, const int64_t* ids, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    const Id id = static_cast<Id>(ids[i]);
    std::memcpy(place + i * sizeof(Id), &id, sizeof(Id));
  }
}

void require(bool true_of_replies) {
  if (!true_of_replies) throw std::runtime_error("the message is no LookupReply");
}

uint64_t read_number(CodedInputStream& in) {
  uint64_t value = 0;
  require(in.ReadVarint64(&value));
  return value;
}

}  // namespace

grpc::ByteBuffer encode_request(const Table& table, uint64_t request_id, uint64_t epoch, double now, double deadline,
                                uint64_t min_version, const int64_t* ids, size_t count) {
  LookupRequest header;
  header.set_request_id(request_id);
  header.set_table(table.name);
  header.set_fingerprint(table.fingerprint);
  header.set_epoch(epoch);
  header.set_min_version(min_version);
  header.set_sent_us(static_cast<uint64_t>(now * 1e6));
  header.set_timeout_ms(static_cast<uint32_t>(std::clamp((deadline - now) * 1e3, 0.0, 4e9)));
  const uint32_t bytes = static_cast<uint32_t>(count * table.id_bytes());
  const uint32_t tag =
      WireFormatLite::MakeTag(LookupRequest::kRowIdsFieldNumber, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
  const size_t header_bytes = header.ByteSizeLong();
  const size_t all =
      header_bytes + CodedOutputStream::VarintSize32(tag) + CodedOutputStream::VarintSize32(bytes) + bytes;
  grpc_slice slice = grpc_slice_malloc(all);
  uint8_t* at = GRPC_SLICE_START_PTR(slice);
  at = header.SerializeWithCachedSizesToArray(at);
  at = CodedOutputStream::WriteVarint32ToArray(tag, at);
  at = CodedOutputStream::WriteVarint32ToArray(bytes, at);
  if (table.id_bytes() == 4) {
    write_ids<uint32_t>(at, ids, count);
  } else {
    write_ids<uint64_t>(at, ids, count);
  }
  const grpc::Slice whole(slice, grpc::Slice::STEAL_REF);
  return grpc::ByteBuffer(&whole, 1);
}

Reply::Reply(const grpc::ByteBuffer& message) : message_(message) {
  grpc::ProtoBufferReader reader(&message_);
  CodedInputStream in(&reader);
  const size_t size = message_.Length();
  rows_at_ = size;
  while (const uint32_t tag = in.ReadTag()) {
    const int field = WireFormatLite::GetTagFieldNumber(tag);
    if (WireFormatLite::GetTagWireType(tag) == WireFormatLite::WIRETYPE_VARINT) {
      const uint64_t value = read_number(in);
      if (field == LookupReply::kRequestIdFieldNumber) request_id = value;
      if (field == LookupReply::kStatusFieldNumber) status = static_cast<int>(value);
      if (field == LookupReply::kEpochFieldNumber) epoch = value;
      if (field == LookupReply::kVersionFieldNumber) version = value;
      if (field == LookupReply::kFirstRowFieldNumber) first_row = value;
      continue;
    }
    require(WireFormatLite::GetTagWireType(tag) == WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
    const uint64_t bytes = read_number(in);
    const size_t at = static_cast<size_t>(in.CurrentPosition());
    require(bytes <= size - at);
    if (field == LookupReply::kRowsFieldNumber) {
      require(at + bytes == size);  // rows are the last field
      rows_bytes = bytes;
      rows_at_ = at;
      return;
    }
    if (field == LookupReply::kMessageFieldNumber) {
      require(in.ReadString(&this->message, static_cast<int>(bytes)));
    } else {
      require(in.Skip(static_cast<int>(bytes)));
    }
  }
  require(in.ConsumedEntireMessage());
}

void Reply::copy_rows(uint8_t* place) const {
  std::vector<grpc::Slice> slices;
  if (!message_.Dump(&slices).ok()) throw std::runtime_error("a message without bytes");
  size_t skip = rows_at_;
  for (const grpc::Slice& slice : slices) {
    const size_t passed = std::min(skip, slice.size());
    skip -= passed;
    std::memcpy(place, slice.begin() + passed, slice.size() - passed);
    place += slice.size() - passed;
  }
}

}  // namespace engram::client
