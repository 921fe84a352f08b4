// Figures that are measured in several processes (benches.hpp).

#include <cstdio>
#include <sstream>
#include <stdexcept>

#include "benches.hpp"
#include "process.hpp"

namespace bench {

Compared measure_in_processes(const std::string& figure, const Options& options) {
  const int processes = options.quick ? 3 : 11;
  const int rounds = options.quick ? 41 : 101;
  std::vector<double> ours, rival, ratios, differences;
  for (int i = 0; i < processes; ++i) {
    std::istringstream text(run_in_new_process(figure + " " + std::to_string(rounds)));
    Compared c;
    text >> c.ours >> c.rival >> c.ratio >> c.difference;
    if (!text) throw std::runtime_error("no figures from its process");
    ours.push_back(c.ours);
    rival.push_back(c.rival);
    ratios.push_back(c.ratio);
    differences.push_back(c.difference);
  }
  return {median(ours), median(rival), median(ratios), median(differences)};
}

int run_figure(const std::string& name_and_rounds) {
  std::istringstream text(name_and_rounds);
  std::string name;
  int rounds = 0;
  text >> name >> rounds;
  for (auto part : {dispatch_figures, empty_figures, audit_figures, redirect_figures,
                    livepatch_figures, interpose_figures}) {
    for (const Figure& figure : part()) {
      if (name != figure.name) continue;
      Compared c = figure.measure(rounds);
      std::printf("%.9g %.9g %.9g %.9g\n", c.ours, c.rival, c.ratio, c.difference);
      return 0;
    }
  }
  return -1;
}

}  // namespace bench
