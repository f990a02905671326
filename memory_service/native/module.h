// The parts of the Python module.
#pragma once

#include <nanobind/nanobind.h>

namespace engram {

void bind_client(nanobind::module_& module);

}  // namespace engram
