// The parts of the Python module.
#pragma once

#include <nanobind/nanobind.h>

void bind_cache(nanobind::module_& module);
