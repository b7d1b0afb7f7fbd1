// Columns of text, aligned: the first one to the left, the others to the right.
#pragma once

#include <string>
#include <vector>

namespace banyan::client {

// Thread-compatible. Cells hold ASCII or single-width characters.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : rows_{std::move(header)} {}
  // Shorter rows are filled with empty cells.
  void AddRow(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  // Every line ends in '\n'; no trailing spaces.
  std::string ToText() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

// "512 B", "17.8 MB", "41.2 GB": decimal units.
std::string HumanBytes(double bytes);
// "0.4 s", "12 s", "3 min 20 s"
std::string HumanSeconds(double seconds);

}  // namespace banyan::client
