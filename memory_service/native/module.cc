// The Python module: what each part of it offers stands at the end of that part's own file.
#include <nanobind/nanobind.h>

#include "module.h"

NB_MODULE(_rows, module) {
  engram::bind_client(module);
}
