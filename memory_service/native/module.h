// The parts of the Python module, each in files of its own.
#pragma once

#include <nanobind/nanobind.h>

namespace engram {

void bind_client(nanobind::module_& module);
void bind_server(nanobind::module_& module);

}  // namespace engram
