// The Python module: what each part of it offers stands at the end of that part's own file.
#include "module.h"

NB_MODULE(_rows, module) {
  engram::bind_cache(module);
  engram::bind_client(module);
  engram::bind_server(module);
}
