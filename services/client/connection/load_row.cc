#include "services/client/connection/load_row.h"

#include "services/client/connection/load_watcher.h"

namespace banyan::client {

LoadRow LoadRowOf(const std::string& name, const common::v1::LoadProgress& progress) {
  LoadRow row;
  row.name = name;
  row.phase = LoadPhaseName(progress.phase());
  row.bytes_done = progress.bytes_done();
  row.bytes_total = progress.bytes_total();
  row.elapsed_seconds = progress.elapsed_seconds();
  row.detail = progress.detail();
  row.bytes_per_second = progress.bytes_per_second();
  row.remaining_seconds = progress.remaining_seconds();
  row.cpus = progress.cpus();
  row.resident_bytes = progress.resident_bytes();
  return row;
}

}  // namespace banyan::client
