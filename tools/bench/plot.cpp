#include "bench/plot.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>
#include <vector>

namespace gemma {
namespace {

constexpr double kWidth = 720, kHeight = 420, kMargin = 64;
constexpr const char* kColors[] = {"#1b6ca8", "#c2452d", "#3c8d40", "#7d4aa8", "#b8860b"};

std::string text_of(const char* format, double a, double b = 0, double c = 0, double d = 0) {
  char text[256];
  std::snprintf(text, sizeof text, format, a, b, c, d);
  return text;
}

std::string escaped(const std::string& text) {
  std::string safe;
  for (char c : text) safe += c == '<' ? "&lt;" : c == '&' ? "&amp;" : std::string(1, c);
  return safe;
}

/// Axes with logarithmic scales, in a frame of their own.
class LogPlot {
 public:
  LogPlot(double top, std::pair<double, double> x, std::pair<double, double> y) : top_(top), x_(x), y_(y) {}

  double x(double value) const { return kMargin + place(value, x_) * (kWidth - 2 * kMargin); }
  double y(double value) const { return top_ + kHeight - kMargin - place(value, y_) * (kHeight - 2 * kMargin); }

  void axes(const std::string& title, const std::string& x_name, const std::string& y_name) {
    label(kMargin, top_ + 28, title, "font-weight='bold'");
    label(kWidth / 2 - 60, top_ + kHeight - 16, x_name);
    label(8, top_ + 48, y_name);
    for (double tick = first_tick(x_); tick <= x_.second; tick *= 10) {
      line(tick, y_.first, tick, y_.second, "#ddd");
      label(x(tick) - 10, top_ + kHeight - kMargin + 18, text_of("%g", tick));
    }
    for (double tick = first_tick(y_); tick <= y_.second; tick *= 10) {
      line(x_.first, tick, x_.second, tick, "#ddd");
      label(12, y(tick) + 4, text_of("%g", tick));
    }
  }
  void line(double x1, double y1, double x2, double y2, const char* color, const char* more = "") {
    svg_ += text_of("<line x1='%.1f' y1='%.1f' x2='%.1f' y2='%.1f'", x(x1), y(y1), x(x2), y(y2)) + " stroke='" + color +
            "' " + more + "/>\n";
  }
  void point(double at_x, double at_y, const char* color, const std::string& name) {
    svg_ += text_of("<circle cx='%.1f' cy='%.1f' r='4'", x(at_x), y(at_y)) + " fill='" + color + "'><title>" +
            escaped(name) + "</title></circle>\n";
    label(x(at_x) + 6, y(at_y) + 4, name, "font-size='10'");
  }
  const std::string& svg() const { return svg_; }

 private:
  static double place(double value, const std::pair<double, double>& range) {
    return std::log(value / range.first) / std::log(range.second / range.first);
  }
  static double first_tick(const std::pair<double, double>& range) {
    return std::pow(10, std::ceil(std::log10(range.first)));
  }
  void label(double at_x, double at_y, const std::string& text, const char* more = "") {
    svg_ += text_of("<text x='%.1f' y='%.1f' ", at_x, at_y) + more + ">" + escaped(text) + "</text>\n";
  }

  double top_;
  std::pair<double, double> x_, y_;
  std::string svg_;
};

std::string roofline(const Report& report) {
  const double peak = report.limits.multiply_flop_per_s / 1e12;    // TFLOP/s
  const double bandwidth = report.limits.read_bytes_per_s / 1e12;  // TB/s
  const double ridge = peak / bandwidth;                           // FLOP a byte
  const std::pair<double, double> x = {0.5, std::max(20 * ridge, 1e4)};
  LogPlot plot(0, x, {0.25 * bandwidth * x.first, 2 * peak});
  plot.axes("Roofline: " + report.device, "FLOP a byte", "TFLOP/s");
  plot.line(x.first, bandwidth * x.first, ridge, peak, "#333", "stroke-width='2'");
  plot.line(ridge, peak, x.second, peak, "#333", "stroke-width='2'");
  std::size_t color = 0;
  for (const ModelResult& model : report.models) {
    const char* of_model = kColors[color++ % std::size(kColors)];
    const std::string name = model.label + " " + model.type;
    for (const DecodeResult& result : model.decode) {
      plot.point(
          result.cost.flop / result.cost.bytes, result.cost.flop / result.step.median / 1e12, of_model,
          name + text_of(result.rows == 1 ? ", %.0f row at %.0f" : ", %.0f rows at %.0f", result.rows, result.context));
    }
    for (const PromptResult& result : model.prompt) {
      plot.point(result.cost.flop / result.cost.bytes, result.cost.flop / result.whole.median / 1e12, of_model,
                 name + text_of(", prompt of %.0f", result.tokens));
    }
  }
  return plot.svg();
}

std::string attention(const ModelResult& model, double top) {
  const std::vector<AttentionResult>& results = model.attention;
  double shortest = 1e9, longest = 0;
  for (const AttentionResult& result : results) {
    shortest = std::min({shortest, result.local_s, result.global_s});
    longest = std::max({longest, result.local_s, result.global_s});
  }
  LogPlot plot(top, {0.7 * results.front().tokens, 1.4 * results.back().tokens}, {700 * shortest, 1400 * longest});
  plot.axes("Attention of one layer of " + model.name, "tokens of the prompt", "ms");
  for (std::size_t i = 0; i < results.size(); ++i) {
    const AttentionResult& result = results[i];
    plot.point(result.tokens, 1e3 * result.local_s, kColors[0], "local");
    plot.point(result.tokens, 1e3 * result.global_s, kColors[1], "global");
    if (i == 0) continue;
    plot.line(results[i - 1].tokens, 1e3 * results[i - 1].local_s, result.tokens, 1e3 * result.local_s, kColors[0]);
    plot.line(results[i - 1].tokens, 1e3 * results[i - 1].global_s, result.tokens, 1e3 * result.global_s, kColors[1]);
  }
  return plot.svg();
}

}  // namespace

std::string plot(const Report& report) {
  std::string body = roofline(report);
  double height = kHeight;
  for (const ModelResult& model : report.models) {
    if (model.attention.empty()) continue;
    body += attention(model, height);
    height += kHeight;
  }
  return text_of(
             "<svg xmlns='http://www.w3.org/2000/svg' width='%.0f' height='%.0f' font-family='sans-serif' "
             "font-size='12'>\n<rect width='100%%' height='100%%' fill='white'/>\n",
             kWidth, height) +
         body + "</svg>\n";
}

}  // namespace gemma
