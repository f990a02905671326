// The Python module: what each part of it offers stands at the end of that part's own file.
#include "module.h"

NB_MODULE(_rows, module) {
  bind_cache(module);
  bind_server(module);
}
