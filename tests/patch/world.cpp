#include "world.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>

namespace molt::patch_test {
namespace {

constexpr int answer_ms = 20'000;

constexpr const char* host_source = R"(
#include <stdio.h>
#include <stdlib.h>
long step(long given);
int main(void) {
  char line[64];
  setvbuf(stdout, NULL, _IOLBF, 0);
  puts("ready");
  while (fgets(line, sizeof line, stdin)) printf("%ld\n", step(atol(line)));
  return 0;
}
)";

void write_file(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

bool is_cxx(const std::string& name) { return name.ends_with(".cpp"); }

std::string read_all(int fd) {
  std::string text;
  char piece[4096];
  for (ssize_t n; (n = read(fd, piece, sizeof piece)) > 0;)
    text.append(piece, static_cast<std::size_t>(n));
  return text;
}

}  // namespace

World::World(const Case& made, const Configuration& configuration)
    : case_(made), configuration_(configuration) {
  const char* base = std::getenv("TMPDIR");
  std::string pattern = std::string(base != nullptr ? base : "/tmp") + "/molt-case-XXXXXX";
  if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp");
  folder_ = pattern;
}

World::~World() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  if (to_ >= 0) close(to_);
  if (from_ >= 0) close(from_);
  if (std::getenv("MOLT_KEEP") == nullptr) std::filesystem::remove_all(folder_);
}

void World::run(const std::string& command) {
  const std::string log = folder_ + "/log";
  if (std::system(("cd " + folder_ + " && " + command + " >log 2>&1").c_str()) != 0) {
    std::ifstream in(log);
    std::stringstream text;
    text << in.rdbuf();
    throw std::runtime_error(command + "\n" + text.str());
  }
}

std::string World::compiler_for(const Source& source) const {
  const bool cxx = is_cxx(source.name);
  if (configuration_.compiler == "clang") return cxx ? "clang++" : "clang";
  return cxx ? "g++" : "gcc";
}

std::string World::flags() const {
  std::string all = configuration_.level + " " + case_.flags;
  if (configuration_.kind == "library") return all + " -fPIC";
  return all + (configuration_.kind == "pie" ? " -fPIE" : " -fno-pie");
}

void World::compile() {
  const std::string shadow =
      " -g -ffunction-sections -fdata-sections -fno-common -fmerge-constants ";
  std::vector<Source> sources = case_.sources;
  bool has_main = false;
  for (const Source& s : sources)
    has_main = has_main || s.before.find("int main(") != std::string::npos;
  const bool is_library = configuration_.kind == "library";
  // Something behind the last function.
  constexpr const char* end = "long end_of_code(long given) { return given * 3 + 1; }\n";
  sources.push_back({"end.c", end, end, ""});
  if (!has_main) sources.push_back({"host.c", host_source, host_source, ""});
  std::string objects, host;
  bool any_cxx = false;
  for (const Source& s : sources) {
    const std::string stem = s.name.substr(0, s.name.rfind('.'));
    any_cxx = any_cxx || is_cxx(s.name);
    const bool is_host = s.name == "host.c";
    const std::string compile =
        compiler_for(s) + " " + (is_host && is_library ? configuration_.level : flags()) + " -c ";
    builder::Unit unit;
    unit.source = s.name;
    unit.directory = folder_;
    unit.output = stem + ".o";
    const auto make = [&](const std::string& text, const std::string& suffix,
                          builder::Objects& into) {
      write_file(folder_ + "/" + s.name, text);
      run(compile + s.name + " -o " + stem + suffix + ".o");
      run(compile + shadow + s.name + " -o " + stem + suffix + ".shadow.o");
      into = {folder_ + "/" + stem + suffix + ".o", folder_ + "/" + stem + suffix + ".shadow.o"};
    };
    if (stem == "callbacks") {
      write_file(folder_ + "/" + s.name, s.before);
      run(compile + shadow + "-I" MOLT_INCLUDE_FOLDER " " + s.name + " -o callbacks.o");
      additions_ = folder_ + "/callbacks.o";
      continue;
    }
    make(s.before, "", unit.old_objects);
    if (s.is_changed()) make(s.after, ".new", unit.new_objects);
    if (is_host && is_library) {
      host = stem + ".o";
      continue;
    }
    objects += " " + stem + ".o";
    units_.push_back(unit);
  }
  const std::string driver =
      std::string(configuration_.compiler == "clang" ? (any_cxx ? "clang++" : "clang")
                                                     : (any_cxx ? "g++" : "gcc"));
  program_ = folder_ + "/program";
  if (is_library) {
    run(driver + " -shared -Wl,--build-id -Wl,-soname,libcase.so -o libcase.so" + objects +
        " -pthread");
    run(driver + " -Wl,--build-id -Wl,-rpath,'$ORIGIN' -o program " + host +
        " -L. -l:libcase.so -pthread");
    target_ = folder_ + "/libcase.so";
  } else {
    run(driver + " -Wl,--build-id -Wl,-z,now " +
        (configuration_.kind == "pie" ? "-pie" : "-no-pie") + " -o program" + objects +
        " -pthread");
    target_ = program_;
  }
}

tl::expected<builder::BuiltPatch, std::vector<builder::Refusal>> World::build() {
  auto image = builder::RunningFile::open(target_, "");
  if (!image) throw std::runtime_error(image.error().detail);
  image_.emplace(std::move(*image));
  auto placement = builder::Placement::compute(*image_, units_);
  if (!placement) throw std::runtime_error(placement.error().detail);
  placement_.emplace(std::move(*placement));
  builder::PatchOptions options;
  options.name = "fix";
  options.description = "a case";
  for (const Source& s : case_.sources) options.diff += s.diff;
  if (!case_.keep.empty()) options.keep_old.push_back(case_.keep);
  if (!additions_.empty()) options.additions.push_back(additions_);
  if (!case_.accept.empty()) options.accept.push_back(case_.accept);
  options.runtime = std::string(std::getenv("MOLT_BIN")) + "/../lib/libmolt.so.0";
  const builder::Placement* all[] = {&*placement_};
  return builder::build_patch(units_, all, options);
}

void World::write_patch(const std::vector<std::byte>& bytes) {
  write_file(patch_path(), std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

void World::start() {
  int in[2], out[2];
  if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0) throw std::runtime_error("pipe");
  pid_ = fork();
  if (pid_ == 0) {
    dup2(in[0], 0);
    dup2(out[1], 1);
    execl(program_.c_str(), program_.c_str(), nullptr);
    _exit(127);
  }
  close(in[0]);
  close(out[1]);
  to_ = in[1];
  from_ = out[0];
  if (ask("") != "ready") throw std::runtime_error("the program did not start");
}

std::string World::ask(const std::string& line) {
  if (!line.empty()) {
    const std::string text = line + "\n";
    if (write(to_, text.data(), text.size()) != static_cast<ssize_t>(text.size())) return "(gone)";
  }
  for (;;) {
    const std::size_t newline = pending_.find('\n');
    if (newline != std::string::npos) {
      const std::string answer = pending_.substr(0, newline);
      pending_.erase(0, newline + 1);
      return answer;
    }
    pollfd ready{from_, POLLIN, 0};
    if (poll(&ready, 1, answer_ms) <= 0) return "(no answer)";
    char piece[512];
    const ssize_t n = read(from_, piece, sizeof piece);
    if (n <= 0) return "(gone)";
    pending_.append(piece, static_cast<std::size_t>(n));
  }
}

int World::molt(const std::vector<std::string>& arguments) {
  int out[2];
  if (pipe2(out, O_CLOEXEC) != 0) throw std::runtime_error("pipe");
  const std::string tool = std::string(std::getenv("MOLT_BIN")) + "/molt";
  const pid_t child = fork();
  if (child == 0) {
    dup2(out[1], 1);
    dup2(out[1], 2);
    std::vector<char*> argv{const_cast<char*>(tool.c_str())};
    for (const std::string& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
    argv.push_back(nullptr);
    execv(tool.c_str(), argv.data());
    _exit(127);
  }
  close(out[1]);
  said = read_all(out[0]);
  close(out[0]);
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

bool World::has_code_at(unsigned long address) const {
  for (const std::string& line : anonymous_code()) {
    char* end = nullptr;
    const unsigned long begin = std::strtoul(line.c_str(), &end, 16);
    if (address >= begin && address < std::strtoul(end + 1, nullptr, 16)) return true;
  }
  return false;
}

std::vector<std::string> World::anonymous_code() const {
  std::vector<std::string> found;
  std::ifstream maps("/proc/" + std::to_string(pid_) + "/maps");
  for (std::string line; std::getline(maps, line);) {
    std::istringstream words(line);
    std::string range, protection, offset, device, inode, path;
    words >> range >> protection >> offset >> device >> inode >> path;
    if (path.empty() && protection.find('x') != std::string::npos) found.push_back(line);
  }
  return found;
}

}  // namespace molt::patch_test
