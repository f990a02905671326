// What Python sees of the server. The classes hold shared pointers to the parts of the server and not the parts
// themselves, so that threads of the server can be the last to let go of one without taking the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/set.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "module.h"
#include "server_rows.h"

namespace nb = nanobind;

namespace engram {

namespace {

using Delta = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

std::vector<int64_t> values(const Delta& delta) { return {delta.data(), delta.data() + delta.size()}; }

std::string text(const nb::bytes& bytes) { return {bytes.c_str(), bytes.size()}; }

struct TableHandle {
  std::shared_ptr<Table> table;
};

struct ShardHandle {
  std::shared_ptr<Shard> shard;
};

void publish(ShardHandle& handle, uint64_t active, std::set<uint64_t> epochs, const nb::dict& tables) {
  std::map<std::string, std::shared_ptr<Table>> served;
  for (const auto& [name, table] : tables) {
    served[nb::cast<std::string>(name)] = nb::cast<TableHandle&>(table).table;
  }
  handle.shard->publish(active, std::move(epochs), served);
}

nb::dict take_counts(ShardHandle& handle) {
  Counters& counters = handle.shard->counters;
  nb::dict stages;
  stages["queue"] = counters.queue.take();
  stages["locate"] = counters.locate.take();
  stages["gather"] = counters.gather.take();
  stages["write"] = counters.write.take();
  nb::dict refused;
  for (size_t status = 0; status < counters.refused.size(); status++) {
    if (const uint64_t count = counters.refused[status].exchange(0)) refused[nb::int_(status)] = count;
  }
  nb::dict tables;
  for (const auto& [name, table] : handle.shard->counts()) {
    if (const uint64_t lookups = table->lookups.exchange(0)) {
      tables[name.c_str()] = std::make_tuple(lookups, table->rows.exchange(0), table->bytes.exchange(0));
    }
  }
  nb::dict taken;
  taken["tables"] = tables;
  taken["refused"] = refused;
  taken["expired"] = counters.expired.exchange(0);
  taken["streams"] = counters.streams.exchange(0);
  taken["latency"] = counters.latency.take();
  taken["stages"] = stages;
  return taken;
}

nb::dict take_blocks(ShardHandle& handle) {
  nb::dict taken;
  for (const auto& [name, table] : handle.shard->counts()) {
    const auto blocks = table->take_blocks();
    if (!blocks.second.empty()) taken[name.c_str()] = blocks;
  }
  return taken;
}

}  // namespace

void bind_server(nb::module_& module) {
  nb::class_<TableHandle>(module, "Table", "The rows of one table, for native readers.")
      .def(
          "__init__",
          [](TableHandle* self, const std::string& name, const nb::bytes& fingerprint, uint64_t rows,
             unsigned block_shift, size_t row_bytes, uintptr_t arena, const Delta& delta, uint64_t version) {
            TableShape shape{name, text(fingerprint), rows, block_shift, row_bytes};
            new (self) TableHandle{std::make_shared<Table>(std::move(shape), reinterpret_cast<const uint8_t*>(arena),
                                                           values(delta), version)};
          },
          nb::kw_only(), nb::arg("name"), nb::arg("fingerprint"), nb::arg("rows"), nb::arg("block_shift"),
          nb::arg("row_bytes"), nb::arg("arena"), nb::arg("delta"), nb::arg("version"))
      .def("publish", [](TableHandle& self, const Delta& delta) { self.table->publish(values(delta)); },
           "Make readers that come from now on see these blocks.")
      .def("set_version", [](TableHandle& self, uint64_t version) { self.table->set_version(version); })
      .def("drain", [](TableHandle& self) { self.table->drain(); }, nb::call_guard<nb::gil_scoped_release>(),
           "Wait until every native reader that is inside now has left.")
      .def("pause", [](TableHandle& self) { self.table->pause(); }, nb::call_guard<nb::gil_scoped_release>(),
           "Wait until no native reader is inside, and keep those that come waiting until `resume`.")
      .def("resume", [](TableHandle& self) { self.table->resume(); })
      .def("set_freshen",
           [](TableHandle& self, uintptr_t function) { self.table->set_freshen(reinterpret_cast<Freshen>(function)); },
           "Have a C function called before rows are read, see server_table.h; 0 for none.")
      .def("close", [](TableHandle& self) { self.table->close(); }, nb::call_guard<nb::gil_scoped_release>(),
           "From the return on, the arena is not read any more.");

  nb::class_<ShardHandle>(module, "Shard", "What a shard serves, for native readers, and what they count.")
      .def(
          "__init__",
          [](ShardHandle* self, const std::string& name, uint64_t max_rows, const std::vector<double>& bounds) {
            new (self) ShardHandle{std::make_shared<Shard>(name, max_rows, bounds)};
          },
          nb::kw_only(), nb::arg("name"), nb::arg("max_rows"), nb::arg("bounds"))
      .def("publish", &publish, nb::arg("active"), nb::arg("epochs"), nb::arg("tables"),
           "Serve these tables under these epochs from now on.")
      .def("take_counts", &take_counts, "What was counted since the last call.")
      .def("take_blocks", &take_blocks, "By table: blocks and the rows asked of them, counted since the last call.");

  nb::class_<RowsServer>(module, "RowsServer", "The gRPC server of a shard's rows, listening from construction on.")
      .def(
          "__init__",
          [](RowsServer* self, const ShardHandle& shard, const std::string& address, const nb::bytes& key,
             const nb::bytes& certificate, const nb::bytes& client_ca, const std::string& token,
             const std::string& refusal, uint64_t streams, uint64_t streams_per_client,
             uint64_t request_bytes_per_client, int max_message_bytes) {
            new (self) RowsServer(shard.shard, address, {text(key), text(certificate), text(client_ca)},
                                  {token, refusal}, {streams, streams_per_client, request_bytes_per_client},
                                  max_message_bytes);
          },
          nb::kw_only(), nb::arg("shard"), nb::arg("address"), nb::arg("key"), nb::arg("certificate"),
          nb::arg("client_ca"), nb::arg("token"), nb::arg("refusal"), nb::arg("streams"),
          nb::arg("streams_per_client"), nb::arg("request_bytes_per_client"), nb::arg("max_message_bytes"))
      .def_prop_ro("port", &RowsServer::port)
      .def(
          "stop", [](RowsServer& self, double grace_s) { return self.stop(std::chrono::duration<double>(grace_s)); },
          nb::arg("grace_s"), nb::call_guard<nb::gil_scoped_release>(),
          "End every stream once its requests are answered; return whether all ended within `grace_s`.");
}

}  // namespace engram
