#include "cli/svg.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

namespace molt::cli {
namespace {

constexpr double width = 720, height = 340;
constexpr double left = 60, right = 20, top = 50, bottom = 50;  // around the plot

struct Moment {
  double us;
  double counts[3];  // from the bottom up: patched, pending, unpatched
};
struct Kind {
  const char* name;
  const char* colour;
};
constexpr Kind kinds[3] = {{"new", "#4c9f70"}, {"pending", "#e8b84a"}, {"old", "#b5525c"}};

std::string escaped(const std::string& text) {
  std::string out;
  for (char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string time_text(double us) {
  return us < 10'000       ? fmt::format("{:.1f} ms", us / 1000)
         : us < 10'000'000 ? fmt::format("{:.0f} ms", us / 1000)
                           : fmt::format("{:.1f} s", us / 1'000'000);
}

}  // namespace

std::string transition_svg(const Json& history) {
  std::vector<Moment> moments;
  double most = 1;
  for (const auto& m : history.at("moments")) {
    moments.push_back({m.at(0).get<double>(), {m.at(3), m.at(2), m.at(1)}});
    const auto& c = moments.back().counts;
    most = std::max(most, c[0] + c[1] + c[2]);
  }
  if (moments.empty()) moments.push_back({0, {0, 0, 0}});
  const double end = std::max(moments.back().us, 1.0);
  const auto x = [&](double us) { return left + (width - left - right) * us / end; };
  const auto y = [&](double n) { return height - bottom - (height - top - bottom) * n / most; };

  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" "
      "font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
      "<text x=\"{}\" y=\"22\" font-size=\"15\">{}: threads over time{}</text>\n",
      width, height, left, escaped(history.at("patch").get<std::string>()),
      history.value("over", true) ? "" : ", not over yet");
  // One area for each kind, on top of those below it. Counts hold until the next moment.
  for (int kind = 0; kind < 3; ++kind) {
    std::string upper, lower;
    const auto sum = [&](const Moment& m, int kinds_below) {
      double n = 0;
      for (int k = 0; k < kinds_below; ++k) n += m.counts[k];
      return n;
    };
    for (std::size_t i = 0; i < moments.size(); ++i) {
      const double from = x(moments[i].us);
      const double to = x(i + 1 < moments.size() ? moments[i + 1].us : end);
      const double high = y(sum(moments[i], kind + 1)), low = y(sum(moments[i], kind));
      upper += fmt::format("{:.1f},{:.1f} {:.1f},{:.1f} ", from, high, to, high);
      lower = fmt::format("{:.1f},{:.1f} {:.1f},{:.1f} ", to, low, from, low) + lower;
    }
    svg +=
        fmt::format("<polygon fill=\"{}\" points=\"{}{}\"/>\n", kinds[kind].colour, upper, lower);
    svg += fmt::format(
        "<rect x=\"{0}\" y=\"32\" width=\"12\" height=\"12\" fill=\"{1}\"/>"
        "<text x=\"{2}\" y=\"43\">{3}</text>\n",
        left + 90 * kind, kinds[kind].colour, left + 90 * kind + 17, kinds[kind].name);
  }
  svg += fmt::format(
      "<path d=\"M{0} {1}V{2}H{3}\" fill=\"none\" stroke=\"black\"/>\n"
      "<text x=\"{4}\" y=\"{5}\" text-anchor=\"end\">{6:.0f}</text>\n"
      "<text x=\"{4}\" y=\"{2}\" text-anchor=\"end\">0</text>\n"
      "<text x=\"{0}\" y=\"{7}\">0</text>\n"
      "<text x=\"{3}\" y=\"{7}\" text-anchor=\"end\">{8}</text>\n</svg>\n",
      left, top, height - bottom, width - right, left - 8, top + 10, most, height - bottom + 20,
      time_text(end));
  return svg;
}

}  // namespace molt::cli
