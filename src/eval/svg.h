// HTML text and small SVG pictures for the report. Colours come from the page's CSS variables, so
// that a picture reads in light and dark. Free functions, thread-safe.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lserve {

// Text for an element or a quoted attribute: & < > " ' become references; bytes that are not UTF-8
// and control characters other than newline and tab become U+FFFD.
std::string EscapeHtml(std::string_view text);

// A grid of shares in [0, 1], rows from the top; a cell without a value stays empty.
struct HeatMap {
  std::string title;
  std::string column_label, row_label;
  std::vector<std::string> columns, rows;
  std::vector<std::vector<std::optional<double>>> cells;  // [row][column]
};
std::string ToSvg(const HeatMap& map);

struct ChartSeries {
  std::string name;
  std::vector<std::pair<double, double>> points;  // ascending x
};
// Lines over a shared axis; the y axis covers [y_low, y_high].
struct LineChart {
  std::string title;
  std::string x_label;
  std::vector<ChartSeries> series;
  std::optional<std::pair<std::string, double>> reference;  // a dashed level line and its name
  bool logarithmic_x = false;
  bool ticks_at_points = false;  // label x where the first series has points
  double y_low = 0, y_high = 1;
  int y_decimals = 0;
};
std::string ToSvg(const LineChart& chart);

// KV heads by layer: filled where the head retrieves, hollow where it streams.
struct HeadGrid {
  std::vector<std::vector<bool>> retrieves;  // [layer][KV head]
  std::vector<std::vector<double>> gates;    // likewise; empty: unknown
};
std::string ToSvg(const HeadGrid& grid);

}  // namespace lserve
