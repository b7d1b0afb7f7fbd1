// What a process says when a mapped file loses its pages under it.
//
// A file that is truncated, or whose disk fails, while it is mapped raises SIGBUS at the next touch
// of a lost page: the weights are gone and no step can end. With NameMappingFaults the process ends
// with code 1 and a line that names the file, instead of a core dump.
#pragma once

#include <cstddef>
#include <string>

namespace banyan {

// Handles SIGBUS from now on; in main. A fault outside the mapped files ends the process as if
// there were no handler.
void NameMappingFaults();

// For MappedFile: which file lies where. Thread-safe. Above 1,024 files at a time further ones are
// not named.
void AddMapping(const std::byte* data, size_t size, const std::string& path);
void RemoveMapping(const std::byte* data);

}  // namespace banyan
