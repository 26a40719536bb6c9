#include "eval/svg.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>

#include "base/check.h"
#include "text/utf8.h"

namespace lserve {
namespace {

// Collects the elements of one picture.
class Svg {
 public:
  Svg(double width, double height, const std::string& label) {
    Add("<svg viewBox=\"0 0 {:.0f} {:.0f}\" width=\"{:.0f}\" height=\"{:.0f}\" role=\"img\" "
        "aria-label=\"{}\">\n",
        width, height, width, height, EscapeHtml(label));
  }
  template <typename... Args>
  void Add(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
  }
  // `anchor`: start, middle or end.
  void Text(double x, double y, const char* anchor, const char* css_class,
            const std::string& text) {
    Add("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" class=\"{}\">{}</text>\n", x, y, anchor,
        css_class, EscapeHtml(text));
  }
  std::string Finish() { return text_ + "</svg>\n"; }

 private:
  std::string text_;
};

struct Rgb {
  double r, g, b;
};

Rgb Mix(const Rgb& a, const Rgb& b, double share) {
  return {a.r + (b.r - a.r) * share, a.g + (b.g - a.g) * share, a.b + (b.b - a.b) * share};
}

// Brick over sand to sea green: it also tells low from high without red-green vision, and the
// number stands in the cell.
Rgb HeatColour(double share) {
  constexpr Rgb kLow{158, 60, 52}, kMiddle{226, 190, 128}, kHigh{46, 125, 112};
  return share < 0.5 ? Mix(kLow, kMiddle, share * 2) : Mix(kMiddle, kHigh, share * 2 - 1);
}

double Luminance(const Rgb& c) { return (0.299 * c.r + 0.587 * c.g + 0.114 * c.b) / 255; }

}  // namespace

std::string EscapeHtml(std::string_view text) {
  std::string escaped;
  for (const char c : RepairUtf8(text)) {
    switch (c) {
      case '&': escaped += "&amp;"; break;
      case '<': escaped += "&lt;"; break;
      case '>': escaped += "&gt;"; break;
      case '"': escaped += "&quot;"; break;
      case '\'': escaped += "&#39;"; break;
      case '\n':
      case '\t': escaped += c; break;
      default:
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
          escaped += kReplacementCharacter;
        } else {
          escaped += c;
        }
    }
  }
  return escaped;
}

std::string ToSvg(const HeatMap& map) {
  CHECK_EQ(map.cells.size(), map.rows.size());
  constexpr double kCellWidth = 58, kCellHeight = 26, kLeft = 62, kTop = 44, kBottom = 24;
  const auto columns = static_cast<double>(map.columns.size());
  const auto rows = static_cast<double>(map.rows.size());
  const double width = std::max(kLeft + columns * kCellWidth + 4,
                                kLeft + 7.0 * static_cast<double>(map.title.size()));
  const double bottom = kTop + rows * kCellHeight;
  Svg svg(width, bottom + kBottom, map.title);
  svg.Text(kLeft, 16, "start", "title", map.title);
  svg.Text(kLeft - 8, kTop - 8, "end", "quiet", map.row_label);
  svg.Text(kLeft + columns * kCellWidth / 2, bottom + 17, "middle", "quiet", map.column_label);
  for (size_t column = 0; column < map.columns.size(); ++column) {
    svg.Text(kLeft + (static_cast<double>(column) + 0.5) * kCellWidth, kTop - 8, "middle", "quiet",
             map.columns[column]);
  }
  for (size_t row = 0; row < map.rows.size(); ++row) {
    const double y = kTop + static_cast<double>(row) * kCellHeight;
    svg.Text(kLeft - 8, y + kCellHeight / 2 + 4, "end", "quiet", map.rows[row]);
    for (size_t column = 0; column < map.columns.size(); ++column) {
      const double x = kLeft + static_cast<double>(column) * kCellWidth;
      const std::optional<double>& value = map.cells[row][column];
      if (!value.has_value()) {
        continue;
      }
      const Rgb fill = HeatColour(*value);
      svg.Add(
          "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" rx=\"3\" "
          "fill=\"rgb({:.0f},{:.0f},{:.0f})\"/>\n",
          x + 1, y + 1, kCellWidth - 2, kCellHeight - 2, fill.r, fill.g, fill.b);
      svg.Text(x + kCellWidth / 2, y + kCellHeight / 2 + 4, "middle",
               Luminance(fill) < 0.55 ? "on-dark" : "on-light",
               fmt::format("{:.0f}", *value * 100));
    }
  }
  return svg.Finish();
}

namespace {

// Where the data of a line chart lies in its picture.
struct ChartFrame {
  static constexpr double kWidth = 460, kHeight = 270;
  static constexpr double kLeft = 52, kRight = 14, kTop = 52, kBottom = 42;

  explicit ChartFrame(const LineChart& line_chart) : chart(line_chart) {
    low_x = std::numeric_limits<double>::infinity();
    high_x = -low_x;
    for (const ChartSeries& series : chart.series) {
      for (const auto& [x, y] : series.points) {
        low_x = std::min(low_x, Position(x));
        high_x = std::max(high_x, Position(x));
      }
    }
  }
  double Position(double x) const { return chart.logarithmic_x ? std::log2(x) : x; }
  double X(double x) const {
    const double share = high_x > low_x ? (Position(x) - low_x) / (high_x - low_x) : 0.5;
    return kLeft + share * (kWidth - kLeft - kRight);
  }
  double Y(double y) const {
    const double share = std::clamp((y - chart.y_low) / (chart.y_high - chart.y_low), 0.0, 1.0);
    return kHeight - kBottom - share * (kHeight - kTop - kBottom);
  }

  const LineChart& chart;
  double low_x, high_x;
};

void DrawAxes(const ChartFrame& frame, Svg* svg) {
  const LineChart& chart = frame.chart;
  constexpr int kSteps = 4;
  for (int i = 0; i <= kSteps; ++i) {
    const double value = chart.y_low + (chart.y_high - chart.y_low) * i / kSteps;
    svg->Add("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" class=\"grid\"/>\n",
             ChartFrame::kLeft, frame.Y(value), ChartFrame::kWidth - ChartFrame::kRight,
             frame.Y(value));
    svg->Text(ChartFrame::kLeft - 8, frame.Y(value) + 4, "end", "quiet",
              fmt::format("{:.{}f}", value, chart.y_decimals));
  }
  std::vector<double> ticks;
  if (chart.ticks_at_points) {
    for (const auto& [x, y] : chart.series[0].points) {
      ticks.push_back(x);
    }
  } else {
    for (int i = 0; i <= kSteps; ++i) {
      ticks.push_back(frame.low_x + (frame.high_x - frame.low_x) * i / kSteps);
    }
  }
  for (const double tick : ticks) {
    svg->Text(frame.X(tick), ChartFrame::kHeight - ChartFrame::kBottom + 16, "middle", "quiet",
              fmt::format("{:.0f}", tick));
  }
  svg->Text((ChartFrame::kLeft + ChartFrame::kWidth - ChartFrame::kRight) / 2,
            ChartFrame::kHeight - 6, "middle", "quiet", chart.x_label);
}

void DrawLegendEntry(double* x, const std::string& css_class, const std::string& name, Svg* svg) {
  constexpr double kY = 34;
  svg->Add("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" class=\"{}\"/>\n", *x, kY,
           *x + 18, kY, css_class);
  svg->Text(*x + 24, kY + 4, "start", "quiet", name);
  *x += 24 + 7.0 * static_cast<double>(name.size()) + 16;
}

}  // namespace

std::string ToSvg(const LineChart& chart) {
  CHECK(!chart.series.empty());
  CHECK_LT(chart.y_low, chart.y_high);
  const ChartFrame frame(chart);
  Svg svg(ChartFrame::kWidth, ChartFrame::kHeight, chart.title);
  svg.Text(ChartFrame::kLeft, 16, "start", "title", chart.title);
  DrawAxes(frame, &svg);
  double legend_x = ChartFrame::kLeft;
  if (chart.reference.has_value()) {
    const double y = frame.Y(chart.reference->second);
    svg.Add("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" class=\"level\"/>\n",
            ChartFrame::kLeft, y, ChartFrame::kWidth - ChartFrame::kRight, y);
    DrawLegendEntry(&legend_x, "level", chart.reference->first, &svg);
  }
  for (size_t i = 0; i < chart.series.size(); ++i) {
    const std::string css_class = fmt::format("line c{}", i % 5);
    std::string points;
    for (const auto& [x, y] : chart.series[i].points) {
      points += fmt::format("{:.1f},{:.1f} ", frame.X(x), frame.Y(y));
    }
    svg.Add("<polyline points=\"{}\" class=\"{}\"/>\n", points, css_class);
    if (chart.ticks_at_points) {
      for (const auto& [x, y] : chart.series[i].points) {
        svg.Add("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" class=\"dot c{}\"/>\n", frame.X(x),
                frame.Y(y), i % 5);
      }
    }
    DrawLegendEntry(&legend_x, css_class, chart.series[i].name, &svg);
  }
  return svg.Finish();
}

std::string ToSvg(const HeadGrid& grid) {
  constexpr double kLeft = 62, kTop = 40;
  const size_t heads = grid.retrieves.empty() ? 0 : grid.retrieves[0].size();
  const bool numbers = !grid.gates.empty() && heads <= 16;
  const double cell_width = numbers ? 44 : 22;
  const double cell_height = numbers ? 22 : 14;
  const double height = kTop + static_cast<double>(grid.retrieves.size()) * cell_height + 6;
  Svg svg(kLeft + static_cast<double>(heads) * cell_width + 6, height, "head plan");
  svg.Text(kLeft, 14, "start", "quiet", "KV head");
  svg.Text(kLeft - 8, kTop - 6, "end", "quiet", "layer");
  for (size_t head = 0; head < heads; ++head) {
    svg.Text(kLeft + (static_cast<double>(head) + 0.5) * cell_width, kTop - 6, "middle", "quiet",
             std::to_string(head));
  }
  for (size_t layer = 0; layer < grid.retrieves.size(); ++layer) {
    const double y = kTop + static_cast<double>(layer) * cell_height;
    svg.Text(kLeft - 8, y + cell_height / 2 + 4, "end", "quiet", std::to_string(layer));
    for (size_t head = 0; head < heads; ++head) {
      const double x = kLeft + static_cast<double>(head) * cell_width;
      const bool retrieves = grid.retrieves[layer][head];
      svg.Add(
          "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" rx=\"3\" "
          "class=\"{}\">",
          x + 1.5, y + 1.5, cell_width - 3, cell_height - 3, retrieves ? "retrieves" : "streams");
      svg.Add("<title>layer {}, KV head {}: {}{}</title></rect>\n", layer, head,
              retrieves ? "retrieval" : "streaming",
              grid.gates.empty() ? "" : fmt::format(", gate {:.3f}", grid.gates[layer][head]));
      if (numbers) {
        svg.Text(x + cell_width / 2, y + cell_height / 2 + 4, "middle",
                 retrieves ? "on-accent" : "quiet", fmt::format("{:.2f}", grid.gates[layer][head]));
      }
    }
  }
  return svg.Finish();
}

}  // namespace lserve
