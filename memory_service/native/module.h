// The parts of the Python module.
#pragma once

#include <nanobind/nanobind.h>
