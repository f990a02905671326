// The Python module: what each part of it offers stands at the end of that part's own file.
#include "module.h"

#include <google/protobuf/stubs/logging.h>

NB_MODULE(_rows, module) {
  google::protobuf::SetLogHandler(nullptr);  // else strangers could fill the log with messages that are malformed
  nanobind::set_leak_warnings(false);  // a client that is never closed lives as long as the interpreter
  engram::bind_client(module);
  engram::bind_server(module);
}
