// What Python sees of the client: Client, Stream, Table, Route, Lookup, Cache and MappedTable.
//
// Python calls without the interpreter's lock held wherever the network or another thread may be waited for; threads of
// C++ take it for as long as they call back. An error that such a call raises is reported as unraisable.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>
#include <unistd.h>

#include <algorithm>
#include <memory>

#include "client_cache.h"
#include "client_distinct.h"
#include "client_lookup.h"
#include "client_mapped.h"
#include "module.h"

namespace nb = nanobind;

namespace engram::client {

namespace {

constexpr double kSignals = 0.1;  // seconds after which a thread that waits looks for signals
constexpr double kLearn = 0.05;   // seconds between two lessons of Python from the answers

// An object of Python that any thread may let go of.
class Held {
 public:
  explicit Held(nb::object object) : object_(std::move(object)) {}
  ~Held() {
    if (!Py_IsInitialized()) {
      object_.release();
      return;
    }
    nb::gil_scoped_acquire gil;
    object_.reset();
  }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  nb::handle get() const { return object_; }

 private:
  nb::object object_;
};

using HeldPtr = std::shared_ptr<Held>;

HeldPtr hold(nb::object object) { return std::make_shared<Held>(std::move(object)); }

// Call something of Python from any thread.
template <typename... Args>
void call(const Held& callable, Args&&... args) noexcept {
  nb::gil_scoped_acquire gil;
  try {
    callable.get()(std::forward<Args>(args)...);
  } catch (nb::python_error& error) {
    error.discard_as_unraisable("native client");
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    PyErr_WriteUnraisable(callable.get().ptr());
  }
}

using Ids = nb::ndarray<const int64_t, nb::c_contig, nb::device::cpu>;
using Place = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Packed = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Found = nb::ndarray<bool, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Numbers = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Assigned = nb::ndarray<const uint16_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Options = std::vector<std::pair<std::string, int>>;

// An array over memory that it keeps.
template <typename T>
nb::object array(const std::shared_ptr<uint8_t>& memory, size_t offset, const std::vector<size_t>& shape) {
  auto kept = std::make_unique<std::shared_ptr<uint8_t>>(memory);
  nb::capsule owner(kept.get(), [](void* it) noexcept { delete static_cast<std::shared_ptr<uint8_t>*>(it); });
  kept.release();
  T* const data = reinterpret_cast<T*>(memory.get()) + offset;
  return nb::cast(nb::ndarray<nb::numpy, T>(data, shape.size(), shape.data(), owner));
}

// A request of Python: `land(rows, version)` or `fail(status, message)` is called.
class PythonRequest : public Request {
 public:
  PythonRequest(std::shared_ptr<Poller> poller, nb::object land, nb::object fail, nb::object arrays)
      : poller_(std::move(poller)),
        land_(hold(std::move(land))),
        fail_(hold(std::move(fail))),
        arrays_(hold(std::move(arrays))) {}

  void land() override {
    poller_->defer([land = land_, rows = landed, of = version] { call(*land, rows, of); });
  }

  void fail(const Failure& failure) override {
    poller_->defer([fail = fail_, failure] { call(*fail, failure.status, failure.message); });
  }

 private:
  const std::shared_ptr<Poller> poller_;
  const HeldPtr land_, fail_;
  const HeldPtr arrays_;  // ids and place
};

// Memory of Python's: `allocate(bytes)` returns an array of bytes, such as pinned ones, that is kept while it is used.
std::function<Buffers::Memory(size_t)> allocator(nb::object allocate) {
  if (allocate.is_none()) return nullptr;
  return [callable = hold(std::move(allocate))](size_t bytes) {
    nb::gil_scoped_acquire gil;
    nb::object given = callable->get()(bytes);
    const auto array = nb::cast<nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>>(given);
    if (array.size() < bytes) throw std::runtime_error("allocate returned fewer bytes than it was asked for");
    return Buffers::Memory(array.data(), [owner = hold(std::move(given))](uint8_t*) {});
  };
}

// One client's connections, buffers and lookups.
class Client {
 public:
  // Args:
  //   bounds: upper bounds of the buckets of histograms.
  //   adopt: called with a lookup that is no longer plain.
  //   learn: called now and then while there are answers to learn from.
  //   allocate: allocates the memory of lookups, see `allocator`; None for the heap.
  Client(std::vector<double> bounds, nb::object adopt, nb::object learn, nb::object allocate)
      : learn_(hold(std::move(learn))), buffers_(std::make_shared<Buffers>(allocator(std::move(allocate)))) {
    poller_ = std::make_shared<Poller>([this](double now) { tick(now); });
    const auto adopter = hold(std::move(adopt));
    lookups_ = std::make_shared<Lookups>(poller_, buffers_, std::move(bounds),
                                         [adopter](std::shared_ptr<Lookup> lookup) { call(*adopter, lookup); });
    set_up_.store(true, std::memory_order_release);
  }

  ~Client() {
    if (getpid() != process_) {  // a forked process has no threads of its parent's: leave all as it is
      new std::shared_ptr<Poller>(std::move(poller_));
      new std::shared_ptr<Lookups>(std::move(lookups_));
      return;
    }
    nb::gil_scoped_release release;
    close();
  }

  std::shared_ptr<Stream> stream(std::string shard, nb::object newer_epoch, nb::object ended) {
    return std::make_shared<Stream>(
        poller_, std::move(shard),
        [poller = poller_, callback = hold(std::move(newer_epoch))](uint64_t epoch) {
          poller->defer([callback, epoch] { call(*callback, epoch); });
        },
        [callback = hold(std::move(ended))](const Ending& ending) {
          call(*callback, ending.ok, ending.details, ending.status);
        });
  }

  void send(const std::shared_ptr<Stream>& stream, uint64_t id, std::shared_ptr<Table> table, uint64_t epoch,
            double deadline, uint64_t min_version, const Ids& ids, const Place& place, nb::object land,
            nb::object fail) {
    nb::object arrays = nb::make_tuple(nb::cast(ids), nb::cast(place));
    auto request = std::make_shared<PythonRequest>(poller_, std::move(land), std::move(fail), std::move(arrays));
    request->table = std::move(table);
    request->epoch = epoch;
    request->deadline = deadline;
    request->min_version = min_version;
    request->ids = ids.data();
    request->count = ids.size();
    request->place = place.data();
    request->id = id;
    nb::gil_scoped_release release;
    if (!stream->send(request)) request->fail(Failure{Failure::kUnavailable, stream->why()});
    poller_->attend();
  }

  std::shared_ptr<Lookup> lookup(const std::shared_ptr<Table>& table, const std::shared_ptr<Route>& route,
                                 const Ids& asked, uint64_t turn, double timeout, uint64_t min_version,
                                 size_t most_rows) {
    const double started = monotonic();
    std::vector<size_t> shape(asked.ndim());
    for (size_t axis = 0; axis < shape.size(); ++axis) shape[axis] = asked.shape(axis);
    nb::gil_scoped_release release;
    if (asked.size() > kMostIds) return nullptr;
    auto lookup =
        lookups_->start(table, route, asked.data(), asked.size(), turn, started, timeout, min_version, most_rows);
    if (lookup != nullptr) lookup->shape = std::move(shape);
    return lookup;
  }

  std::vector<std::tuple<std::string, uint64_t, double>> take_answers() {
    std::vector<std::tuple<std::string, uint64_t, double>> taken;
    for (Answer& answer : lookups_->take_answers()) taken.emplace_back(answer.shard, answer.rows, answer.seconds);
    return taken;
  }

  std::map<std::string, Tally> take_tallies() { return lookups_->take_tallies(); }
  void set_patience(size_t bits, double seconds) { lookups_->set_patience(bits, seconds); }

  // Have all lookups adopted that are under way; there will be no plain ones any more.
  void end_lookups() { lookups_->close(); }

  // End the background thread; the streams must have been broken off.
  void close() {
    lookups_->close();
    lookups_->detach();
    poller_->close();
    learn_.reset();
  }

 private:
  void tick(double now) {
    if (!set_up_.load(std::memory_order_acquire)) return;
    lookups_->tick(now);
    if (now - learnt_ < kLearn || !lookups_->has_answers()) return;
    learnt_ = now;
    call(*learn_);
  }

  const pid_t process_ = getpid();
  HeldPtr learn_;
  double learnt_ = 0;
  std::atomic<bool> set_up_{false};
  std::shared_ptr<Buffers> buffers_;
  std::shared_ptr<Lookups> lookups_;
  std::shared_ptr<Poller> poller_;
};

std::shared_ptr<Table> make_table(std::string name, const nb::bytes& fingerprint, uint64_t rows, size_t row_bytes,
                                  int block_shift, std::shared_ptr<Cache> cache) {
  auto table = std::make_shared<Table>();
  table->name = std::move(name);
  table->fingerprint.assign(fingerprint.c_str(), fingerprint.size());
  table->rows = rows;
  table->row_bytes = row_bytes;
  table->block_shift = block_shift;
  table->cache = std::move(cache);
  return table;
}

std::shared_ptr<Route> make_route(uint64_t epoch, const Assigned& assigned,
                                  std::vector<std::string> shards, std::vector<std::shared_ptr<Stream>> streams,
                                  std::vector<std::shared_ptr<MappedTable>> mapped) {
  auto route = std::make_shared<Route>();
  route->epoch = epoch;
  route->replicas = assigned.shape(0);
  route->blocks = assigned.shape(1);
  route->assigned.assign(assigned.data(), assigned.data() + assigned.size());
  route->shards = std::move(shards);
  route->streams = std::move(streams);
  route->mapped.assign(mapped.begin(), mapped.end());
  return route;
}

// Wait for a lookup. Its rows and its inverse, or None if it was adopted.
nb::object wait(const std::shared_ptr<Lookup>& lookup, std::optional<double> timeout) {
  const double until = timeout ? monotonic() + *timeout : 1e18;
  while (lookup->state() == Lookup::State::kPlain) {
    const double now = monotonic();
    bool over = false;
    {
      nb::gil_scoped_release release;
      over = lookup->wait(std::min(until, now + kSignals));
    }
    if (over) break;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    if (monotonic() >= until) {
      PyErr_SetNone(PyExc_TimeoutError);
      throw nb::python_error();
    }
  }
  if (lookup->state() == Lookup::State::kAdopted) return nb::none();
  return nb::make_tuple(array<uint8_t>(lookup->rows, 0, {lookup->unique, lookup->table->row_bytes}),
                        array<int64_t>(lookup->inverse, 0, lookup->shape));
}

nb::object owner_of(const Lookup& lookup) {
  return nb::borrow(std::static_pointer_cast<Held>(lookup.owner())->get());
}

// A part as it was asked: shard, whether it was mapped, place of its first row, rows asked, and request id.
nb::tuple part_of(const Lookup& lookup, size_t index) {
  const Lookup::Part& part = lookup.parts.at(index);
  return nb::make_tuple(part.shard, part.mapped, part.low, part.count, part.id);
}

// What became of a part: moment of the answer, rows landed, version, and the status and message of its failure, or None.
nb::tuple outcome_of(const Lookup& lookup, size_t index) {
  if (!lookup.settled(index)) throw std::logic_error("the part is under way");
  const Lookup::Part& part = lookup.parts.at(index);
  nb::object failure = nb::none();
  if (part.outcome == Lookup::Outcome::kFailed) failure = nb::make_tuple(part.failure.status, part.failure.message);
  return nb::make_tuple(part.answered, part.landed, part.version, failure);
}

nb::tuple cached(Cache& cache, const Numbers& ids, const Place& out, const Found& found) {
  Cache::Hits hits;
  {
    nb::gil_scoped_release release;
    hits = cache.get(ids.data(), ids.size(), out.data(), found.data(), false);
  }
  return nb::make_tuple(hits.count, hits.version);
}

// Maps what arrays of Python lie in, for as long as it is used.
std::shared_ptr<MappedTable> map_table(const Packed& arena, const Numbers& header, const Numbers& delta,
                                       unsigned block_shift, int pidfd) {
  auto arrays = hold(nb::make_tuple(nb::cast(arena), nb::cast(header), nb::cast(delta)));
  return std::make_shared<MappedTable>(arena.data(), arena.shape(0), arena.shape(1), header.data(), delta.data(),
                                       delta.size(), block_shift, pidfd, std::move(arrays));
}

std::optional<uint64_t> read_mapped(const MappedTable& table, const Numbers& ids, const Place& out) {
  nb::gil_scoped_release release;
  return table.read(ids.data(), ids.size(), out.data());
}

nb::tuple distinct_of(const Table& table, const Ids& asked) {
  const size_t count = asked.size();
  if (count > kMostIds) throw nb::value_error("too many ids to hash");
  std::vector<size_t> shape(asked.ndim());
  for (size_t axis = 0; axis < shape.size(); ++axis) shape[axis] = asked.shape(axis);
  const auto memory = [count] {
    return std::shared_ptr<uint8_t>(new uint8_t[count * sizeof(int64_t)], std::default_delete<uint8_t[]>());
  };
  const auto ids = memory(), inverse = memory();
  const int64_t found = distinct(asked.data(), count, table.rows, reinterpret_cast<int64_t*>(ids.get()),
                                 reinterpret_cast<int64_t*>(inverse.get()));
  if (found < 0) throw nb::index_error("an id is not in the table");
  return nb::make_tuple(array<int64_t>(ids, 0, {static_cast<size_t>(found)}), array<int64_t>(inverse, 0, shape));
}

}  // namespace
}  // namespace engram::client

void engram::bind_client(nb::module_& parent) {
  using namespace engram::client;
  nb::module_ module = parent.def_submodule("client", "The client's side.");
  using released = nb::call_guard<nb::gil_scoped_release>;
  nb::class_<Table>(module, "Table")
      .def("distinct", &distinct_of);
  nb::class_<Route>(module, "Route");
  nb::class_<Cache>(module, "Cache")
      .def(nb::init<uint64_t, size_t, size_t, size_t, uint32_t>(), nb::arg("rows"), nb::arg("sets"), nb::arg("ways"),
           nb::arg("row_bytes"), nb::arg("calls") = Cache::kMostCalls)
      .def("get", &cached, nb::arg("ids"), nb::arg("out"), nb::arg("found"))
      .def(
          "put",
          [](Cache& self, const Numbers& ids, const Packed& rows, int64_t version) {
            nb::gil_scoped_release release;
            return self.put(ids.data(), ids.size(), rows.data(), version);
          },
          nb::arg("ids"), nb::arg("packed"), nb::arg("version"))
      .def_prop_ro("version", &Cache::version);
  nb::class_<MappedTable>(module, "MappedTable").def("read", &read_mapped, nb::arg("ids"), nb::arg("out"));
  module.def("map_table", &map_table, nb::arg("arena"), nb::arg("header"), nb::arg("delta"), nb::arg("block_shift"),
             nb::arg("pidfd"));
  module.def("table", &make_table, nb::arg("name"), nb::arg("fingerprint"), nb::arg("rows"), nb::arg("row_bytes"),
             nb::arg("block_shift"), nb::arg("cache").none() = nb::none());
  module.def("route", &make_route, nb::arg("epoch"), nb::arg("assigned"), nb::arg("shards"), nb::arg("streams"),
             nb::arg("mapped"));
  nb::class_<Histogram>(module, "Histogram")
      .def_ro("counts", &Histogram::counts)
      .def_ro("seconds", &Histogram::seconds);
  nb::class_<Tally>(module, "Tally")
      .def_ro("lookups", &Tally::lookups)
      .def_ro("rows", &Tally::rows)
      .def_ro("unique_rows", &Tally::unique_rows)
      .def_ro("requests", &Tally::requests)
      .def_ro("cache_hits", &Tally::cache_hits)
      .def_ro("cache_misses", &Tally::cache_misses)
      .def_ro("total", &Tally::total)
      .def_ro("distinct", &Tally::distinct)
      .def_ro("cache", &Tally::cache)
      .def_ro("map", &Tally::map)
      .def_ro("send", &Tally::send)
      .def_ro("wait", &Tally::wait)
      .def_ro("shard_rows", &Tally::shard_rows);
  nb::class_<Stream>(module, "Stream")
      .def(
          "open",
          [](Stream& self, std::string address, nb::bytes ca, nb::bytes certificate, nb::bytes key,
             std::string server_name, std::string authorization, const Options& options) {
            const auto text = [](const nb::bytes& bytes) { return std::string(bytes.c_str(), bytes.size()); };
            const Target target{std::move(address), text(ca),           text(certificate), text(key),
                                std::move(server_name), std::move(authorization)};
            nb::gil_scoped_release release;
            self.open(target, options);
          })
      .def("next_id", &Stream::next_id, released())
      .def("forget", &Stream::forget, released())
      .def("break_off", &Stream::break_off, released())
      .def("stalled", &Stream::stalled)
      .def("why", &Stream::why, released())
      .def("join", [](Stream& self, double timeout) { return self.join(monotonic() + timeout); }, released())
      .def_prop_ro("retired", &Stream::retired);
  nb::class_<Lookup>(module, "Lookup")
      .def("wait", &wait, nb::arg("timeout").none())
      .def("own", [](Lookup& self, nb::object owner) { self.ready(hold(std::move(owner))); })
      .def("when_done",
           [](Lookup& self, nb::object callback) {
             return self.when_done([held = hold(std::move(callback))] { call(*held); });
           }, released())
      .def("attach",
           [](Lookup& self, nb::object report) {
             self.attach([&self, held = hold(std::move(report))](size_t part) {
               call(*held, self.shared_from_this(), part);
             });
           })
      .def("part", &part_of)
      .def("outcome", &outcome_of)
      .def("rows_of",
           [](const Lookup& self, size_t low, size_t count) {
             const size_t row_bytes = self.table->row_bytes;
             return array<uint8_t>(self.rows, low * row_bytes, {count, row_bytes});
           })
      .def_prop_ro("owner", &owner_of)
      .def_prop_ro("done", [](const Lookup& self) { return self.state() == Lookup::State::kDone; })
      .def_prop_ro("ids", [](const Lookup& self) { return array<int64_t>(self.ids, 0, {self.unique}); })
      .def_prop_ro("inverse", [](const Lookup& self) { return array<int64_t>(self.inverse, 0, self.shape); })
      .def_prop_ro("parts", [](const Lookup& self) { return self.parts.size(); })
      .def_prop_ro("table", [](const Lookup& self) { return self.table->name; })
      .def_prop_ro("epoch", [](const Lookup& self) { return self.route->epoch; })
      .def_prop_ro("version", &Lookup::version)
      .def_ro("asked", &Lookup::asked)
      .def_ro("hits", &Lookup::hits)
      .def_ro("min_version", &Lookup::min_version)
      .def_ro("started", &Lookup::started)
      .def_ro("sent", &Lookup::sent)
      .def_ro("timeout", &Lookup::timeout);
  nb::class_<Client>(module, "Client")
      .def(nb::init<std::vector<double>, nb::object, nb::object, nb::object>(), nb::arg("bounds"), nb::arg("adopt"),
           nb::arg("learn"), nb::arg("allocate").none() = nb::none())
      .def("stream", &Client::stream, nb::arg("shard"), nb::arg("newer_epoch"), nb::arg("ended"))
      .def("send", &Client::send)
      .def("lookup", &Client::lookup)
      .def("take_answers", &Client::take_answers)
      .def("take_tallies", &Client::take_tallies)
      .def("set_patience", &Client::set_patience)
      .def("end_lookups", &Client::end_lookups, released())
      .def("close", &Client::close, released());
}
