#include "builder/flow.hpp"

#include "base/hash.hpp"
#include "builder/beside.hpp"
#include "builder/beside_sizes.hpp"
#include "builder/capture.hpp"
#include "builder/compiler_command.hpp"
#include "builder/diff_file.hpp"
#include "builder/leave_out.hpp"
#include "builder/line_guard.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>

namespace molt::builder {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Parts of a tree that programs are not made of: what a diff changes there need not be compiled.
bool is_beside(const std::string& path) {
  constexpr std::array<std::string_view, 9> folders = {
      "test", "tests", "testsuite", "t", "doc", "docs", "examples", "fuzz", "benchmark"};
  std::size_t begin = 0;
  for (;;) {
    const std::size_t end = path.find('/', begin);
    if (end == path.npos) return false;
    const std::string_view folder = std::string_view(path).substr(begin, end - begin);
    if (std::ranges::find(folders, folder) != folders.end()) return true;
    begin = end + 1;
  }
}

bool includes(const Record& record, const std::string& path) {
  return std::ranges::find(record.dependencies, path) != record.dependencies.end();
}

bool is_same_file(const std::string& a, const std::string& b) {
  std::ifstream one(a, std::ios::binary);
  std::ifstream other(b, std::ios::binary);
  return one && other &&
         std::equal(std::istreambuf_iterator<char>(one), {}, std::istreambuf_iterator<char>(other),
                    {});
}

Refusal refusal(std::string kind, std::string unit, std::string text, std::string advice) {
  Refusal one;
  one.kind = std::move(kind);
  one.unit = std::move(unit);
  one.text = std::move(text);
  one.advice = std::move(advice);
  return one;
}

using Records = std::map<std::string, Record>;  // by output

Result<Records> records_of(const Workspace& space, std::string_view phase) {
  auto list = read_records(space.folder_of(phase));
  if (!list) return pass(list);
  Records records;
  for (Record& record : *list) {
    std::string output = record.output;
    records.emplace(std::move(output), std::move(record));
  }
  return records;
}

class Flow {
 public:
  explicit Flow(const FlowRequest& request) : request_(request) {}

  Result<FlowResult> run() {
    for (const FlowTarget& target : request_.targets) {
      auto file = RunningFile::open(target.path, target.debug_file);
      if (!file) return pass(file);
      running_.push_back(std::move(*file));
    }
    if (auto done = build_three(); !done) return pass(done);
    check_compiled();
    refuse_who_knows_sizes(beside_, new_, grown_, request_.patch.keep_old, result_.refusals);
    list_units();
    auto done = make_patch();
    if (!full_.empty() && (!done || !result_.refusals.empty())) {
      return fail(ENOSPC, "what was compiled could not all be kept in %s", full_.c_str());
    }
    if (!done) return pass(done);
    return std::move(result_);
  }

 private:
  void say(const std::string& text) const {
    if (request_.say) request_.say(text);
  }

  Status build_three();
  static Status check_outputs(const Workspace& space);
  Status leave_out(const Workspace& space);
  Status keep_beside();
  Status grow(Workspace& space);
  void refuse_makers_elsewhere(const std::vector<Placement>& placements);
  Status guard(const Workspace& space);
  static Status build_base(Workspace& space);
  static Status complete_base(Workspace& space, std::filesystem::file_time_type started);
  Status complete_new(Workspace& space);
  Status complete_old(Workspace& space);
  Status compile_callbacks(Workspace& space);
  void check_compiled();
  void refuse_moved(const PatchedFile& gone);
  void refuse_opaque(const Record& record);
  void refuse_overwritten();
  void note_build_files();
  void list_units();
  void leave_alone(Unit& unit);
  void count_identity(const Placement& placement);
  Status make_patch();

  const FlowRequest& request_;
  FlowResult result_;
  bool is_in_no_target(const std::string& path) const;

  std::vector<RunningFile> running_;
  std::vector<PatchedFile> files_;
  std::map<std::string, std::filesystem::file_time_type> times_;  // of the diff's files, before it
  std::string hunks_;
  std::string source_;
  std::string additions_;
  std::vector<Beside> beside_;
  Records grown_;     // of new_, with what is in beside_ larger
  std::string full_;  // where the disc has no room left; "": it has
  Records base_;
  Records new_;
  Records old_;
  std::vector<Unit> units_;
};

// A file of which nothing is left is what it was before, its time too: nothing is compiled for it.
Status Flow::leave_out(const Workspace& space) {
  if (request_.leave_out.empty()) return {};
  auto notes = builder::leave_out(files_, request_.leave_out);
  if (!notes) return pass(notes);
  result_.notes.insert(result_.notes.end(), notes->begin(), notes->end());
  std::vector<PatchedFile> unchanged;
  std::ranges::copy_if(files_, std::back_inserter(unchanged),
                       [](const PatchedFile& file) { return file.old_text == file.new_text; });
  if (auto done = write_old(unchanged, space.tree()); !done) return done;
  for (const PatchedFile& file : unchanged) {
    std::error_code error;
    const auto at = times_.find(file.path);
    if (at != times_.end()) {
      std::filesystem::last_write_time(space.tree() + "/" + file.path, at->second, error);
    }
  }
  std::erase_if(files_, [](const PatchedFile& file) { return file.old_text == file.new_text; });
  return {};
}

Status Flow::keep_beside() {
  if (request_.beside.empty()) return {};
  if (!request_.callbacks.empty()) {
    return fail(EINVAL, "--beside and --callbacks: keep the members in the callbacks' file too");
  }
  auto kept = builder::keep_beside(files_, request_.beside);
  if (!kept) return pass(kept);
  beside_ = std::move(*kept);
  for (const Beside& one : beside_) {
    std::string members;
    for (const std::string& name : one.members) members += (members.empty() ? "" : ", ") + name;
    result_.notes.push_back(fmt::format(
        "{}: {} stays as it is; {} of its objects {} beside them, 0 for those that exist", one.file,
        one.type, members, one.members.size() == 1 ? "lies" : "lie"));
  }
  return {};
}

// Whoever knows how large a type is has other code then, but for those who were seen making objects.
Status Flow::grow(Workspace& space) {
  if (beside_.empty()) return {};
  std::vector<PatchedFile> larger;
  for (const PatchedFile& file : files_) {
    if (!file.new_text) continue;
    PatchedFile one = file;
    one.new_text = grown(*file.new_text);
    if (one.new_text != file.new_text) larger.push_back(std::move(one));
  }
  if (auto done = write_new(larger, space.tree()); !done) return done;
  std::vector<Record> again;
  for (const auto& [output, record] : new_) {
    const bool is_touched =
        std::ranges::any_of(larger, [&, &record = record](const PatchedFile& file) {
          return includes(record, source_ + "/" + file.path);
        });
    if (!is_touched || is_opaque(record)) continue;
    again.push_back(record);
    again.back().command.emplace_back(
        "-w");  // such as of casts from a buffer that is too small then
  }
  std::error_code error;
  std::filesystem::remove_all(space.folder_of("grown"), error);
  std::filesystem::create_directories(space.folder_of("grown"), error);
  if (auto done = space.compile_again("grown", again); !done) {
    return fail(done.error().code,
                "--beside: something depends on how large a type is, and does not compile with a "
                "larger one; keep "
                "the members by hand (--callbacks); %s",
                std::string(done.error().detail).c_str());
  }
  auto records = records_of(space, "grown");
  if (!records) return pass(records);
  grown_ = std::move(*records);
  return {};
}

// The same files with #line directives; what the compiler sees of the diff.
Status Flow::guard(const Workspace& space) {
  for (PatchedFile& file : files_) {
    if (!file.new_text || !is_c_family(file.path)) continue;
    const std::string old_text = file.old_text.value_or("");
    Guarded guarded = guard_lines(old_text, *file.new_text);
    hunks_ += fmt::format("--- a/{}\n+++ b/{}\n{}", file.path, file.path, guarded.hunks);
    if (!file.old_text) continue;
    file.new_text = std::move(guarded.text);
  }
  return write_new(files_, space.tree());
}

// W1. Objects of a folder that was not copied would be built with the diff in, in the user's own.
Status Flow::check_outputs(const Workspace& space) {
  auto base = records_of(space, "base");
  if (!base) return pass(base);
  for (const auto& [output, record] : *base) {
    const bool is_of_tree = std::ranges::any_of(
        record.dependencies, [&](const std::string& path) { return space.is_in_copy(path); });
    std::error_code error;
    if (space.is_in_copy(output) || !is_of_tree || !std::filesystem::exists(output, error)) {
      continue;
    }
    return fail(EINVAL,
                "the build command puts %s outside of the source tree: name the build folder with "
                "--build-folder",
                output.c_str());
  }
  return {};
}

Status Flow::build_three() {
  say("copying the tree");
  auto opened = Workspace::open(request_.workspace);
  if (!opened) return pass(opened);
  Workspace& space = *opened;
  source_ = space.source();
  if (!space.is_in_place()) {
    result_.notes.push_back(
        "no mount namespace is permitted here: the copy was built where it lies, and compiled "
        "under the "
        "tree's name (-ffile-prefix-map)");
  }

  // What the user's own files have become since the last run is compiled again here.
  say(space.is_warm()      ? "building what changed since the last run"
      : space.is_resumed() ? "going on with the build that was broken off"
                           : "building the tree as it runs");
  auto begin = Clock::now();
  if (auto done = space.mark("building"); !done) return done;
  if (auto done = build_base(space); !done) {
    if (!space.is_resumed()) return done;
    say("that failed; building all of it anew");
    if (auto anew = space.begin_anew(); !anew) return anew;
    if (auto marked = space.mark("building"); !marked) return marked;
    if (done = build_base(space); !done) return done;
  }
  result_.base_s = seconds_since(begin);
  if (auto done = check_outputs(space); !done) {
    if (auto marked = space.mark("clean"); !marked) return marked;
    return done;
  }

  auto applied = apply_diff(request_.diff, space.tree(), [&](const auto& files) {
    for (const PatchedFile& file : files) {
      std::error_code error;
      const auto time = std::filesystem::last_write_time(space.tree() + "/" + file.path, error);
      if (!error) times_[file.path] = time;
    }
    return space.mark_patched(files);
  });
  if (!applied) {
    if (auto done = space.mark("clean"); !done) return done;
    return pass(applied);
  }
  files_ = std::move(*applied);
  Status prepared = leave_out(space);
  if (prepared) prepared = keep_beside();
  if (auto done = prepared; !done) {
    if (auto undone = write_old(files_, space.tree()); !undone) return undone;
    if (auto marked = space.mark("clean"); !marked) return marked;
    return done;
  }
  if (auto done = guard(space); !done) return done;
  say("building with the diff");
  begin = Clock::now();
  Status built = space.build("new", true, false);
  if (built) built = complete_new(space);
  if (built) built = compile_callbacks(space);
  if (built) {
    built = grow(space);
  } else if (!beside_.empty()) {
    built = fail(built.error().code, "--beside: what cannot lie beside does not compile; %s",
                 std::string(built.error().detail).c_str());
  }
  result_.new_s = seconds_since(begin);

  if (auto done = write_old(files_, space.tree()); !done) return done;
  if (!built) {
    // The objects are newer than the sources again: one more build, or a new copy the next time.
    if (space.build("old", false, false) && !space.mark("clean")) return built;
    return built;
  }
  say("building without it");
  begin = Clock::now();
  if (auto done = space.build("old", true, false); !done) return done;
  if (auto done = complete_old(space); !done) return done;
  result_.old_s = seconds_since(begin);
  if (space.is_full()) {
    // Not clean: the next run compiles again what the diff touches.
    full_ = space.folder_of("old");
    return {};
  }
  return space.mark("clean");
}

Status Flow::build_base(Workspace& space) {
  const auto started = std::filesystem::file_time_type::clock::now();
  const bool has_records = space.is_warm() || space.is_resumed();
  if (auto done = space.build("base", false, has_records); !done) return done;
  return complete_base(space, started);
}

// The same as complete_new() of what the user changed since the last run, or a broken-off one had changed.
Status Flow::complete_base(Workspace& space, std::filesystem::file_time_type started) {
  if (space.changed().empty() && space.lost().empty()) return {};
  auto base = records_of(space, "base");
  if (!base) return pass(base);
  std::vector<Record> stale;
  for (const auto& [output, record] : *base) {
    std::error_code error;
    const bool is_again = std::filesystem::last_write_time(record.plain, error) >= started;
    const bool is_touched =
        std::ranges::find(space.lost(), output) != space.lost().end() ||
        std::ranges::any_of(space.changed(), [&record = record](const std::string& path) {
          return includes(record, path);
        });
    if (is_touched && !is_again && !is_opaque(record)) stale.push_back(record);
  }
  return stale.empty() ? Status{} : space.compile_again("base", stale);
}

// A build command may not know of every header that an object depends on, or of a library of its own
// that is built once. What it left alone is compiled here, with its own words.
Status Flow::complete_new(Workspace& space) {
  auto base = records_of(space, "base");
  auto now = records_of(space, "new");
  if (!base || !now) return pass(!base ? base : now);
  std::vector<Record> stale;
  for (const auto& [output, record] : *base) {
    const bool is_touched =
        std::ranges::any_of(files_, [&, &record = record](const PatchedFile& file) {
          return file.new_text && includes(record, source_ + "/" + file.path);
        });
    if (!is_touched || now->contains(output)) continue;
    if (is_opaque(record)) {
      refuse_opaque(record);
    } else {
      stale.push_back(record);
    }
  }
  if (!stale.empty()) {
    result_.notes.push_back(
        fmt::format("the build command left {} object{} alone that the diff touches, such as {}: "
                    "compiled by itself",
                    stale.size(), stale.size() == 1 ? "" : "s", stale.front().output));
    if (auto done = space.compile_again("new", stale); !done) return done;
    now = records_of(space, "new");
    if (!now) return pass(now);
  }
  base_ = std::move(*base);
  new_ = std::move(*now);
  return {};
}

// With the diff in, as they may use what it declares; where the first unit was compiled, and with its
// options about headers.
Status Flow::compile_callbacks(Workspace& space) {
  std::string source = request_.callbacks;
  if (!beside_.empty()) {
    source = space.folder_of("new") + "/beside.cpp";
    std::vector<std::string> objects;
    for (const RunningFile& file : running_) objects.push_back(file.soname());
    std::ofstream out(source);
    if (!(out << beside_source(beside_, objects) << std::flush)) {
      return fail(EIO, "cannot write %s", source.c_str());
    }
  }
  if (source.empty()) return {};
  const char* compiler = std::getenv("CXX");
  additions_ = space.folder_of("new") + "/callbacks.o";
  std::vector<std::string> words = {compiler != nullptr && *compiler != '\0' ? compiler : "c++",
                                    "-std=c++20",
                                    "-g",
                                    "-O2",
                                    "-fno-exceptions",
                                    "-ffunction-sections",
                                    "-fdata-sections",
                                    "-fno-common",
                                    "-fmerge-constants"};
  std::string folder = space.source();
  if (!new_.empty()) {
    const Record& record = new_.begin()->second;
    folder = record.directory;
    for (std::size_t i = 1; i < record.command.size(); ++i) {
      const std::string& word = record.command[i];
      const bool is_pair = word == "-I" || word == "-D" || word == "-U" || word == "-isystem" ||
                           word == "-iquote" || word == "-idirafter" || word == "-include";
      if (!is_pair && !word.starts_with("-I") && !word.starts_with("-D") &&
          !word.starts_with("-U")) {
        continue;
      }
      words.push_back(word);
      if (is_pair && i + 1 < record.command.size()) words.push_back(record.command[++i]);
    }
  }
  words.insert(words.end(), {"-I" + request_.include, "-c", source, "-o", additions_});
  return space.run_beside("callbacks", words, folder);
}

Status Flow::complete_old(Workspace& space) {
  auto now = records_of(space, "old");
  if (!now) return pass(now);
  std::vector<Record> stale;
  for (const auto& [output, record] : new_) {
    const auto before = base_.find(output);
    if (before != base_.end() && !now->contains(output) && !is_opaque(record)) {
      stale.push_back(before->second);
    }
  }
  if (!stale.empty()) {
    if (auto done = space.compile_again("old", stale); !done) return done;
    now = records_of(space, "old");
    if (!now) return pass(now);
  }
  old_ = std::move(*now);
  return {};
}

// Of a file that nothing was compiled from: is the target made without it, by its own symbol table? A
// source would be named there. Nothing names a header; but if each source there is one that was compiled
// here, none of them includes it.
bool Flow::is_in_no_target(const std::string& path) const {
  std::set<std::string> compiled = {"crtstuff.c", "crt1.o", "Scrt1.o", "gcrt1.o",
                                    "crti.o",     "crtn.o", "init.c",  "abi-note.c"};
  for (const Records* records : {&base_, &new_}) {
    for (const auto& [output, record] : *records) {
      compiled.insert(std::filesystem::path(record.source).filename().string());
    }
  }
  // What was piped into a compiler has no name there.
  for (const RunningFile& file : running_) {
    for (const char* piped : {"<stdin>", "-"}) {
      if (std::ranges::find(file.source_names(), piped) != file.source_names().end()) return false;
    }
  }
  const std::string name = std::filesystem::path(path).filename().string();
  const bool is_source = name.find(".c") != name.npos || name.find(".C") != name.npos;
  return std::ranges::all_of(running_, [&](const RunningFile& file) {
    const auto& names = file.source_names();
    const auto is_same = [&](const std::string& one) {
      return std::filesystem::path(one).filename().string() == name;
    };
    if (names.empty() || std::ranges::any_of(names, is_same)) return false;
    return is_source || std::ranges::all_of(names, [&](const std::string& one) {
             return compiled.contains(std::filesystem::path(one).filename().string());
           });
  });
}

// Functions of the one would be taken for new ones in the other, which nobody calls.
void Flow::refuse_moved(const PatchedFile& gone) {
  const auto is_source = [](const std::string& path) {
    const std::string ending = std::filesystem::path(path).extension().string();
    return ending.starts_with(".c") || ending == ".C";
  };
  const auto is_compiled = [&](const Records& records, const std::string& path) {
    return std::ranges::any_of(
        records, [&](const auto& one) { return includes(one.second, source_ + "/" + path); });
  };
  if (!is_source(gone.path) || !is_compiled(base_, gone.path)) return;
  for (const PatchedFile& made : files_) {
    if (made.old_text || !is_source(made.path) || !is_compiled(new_, made.path)) continue;
    result_.refusals.push_back(
        refusal("file_moved", gone.path,
                fmt::format("the diff takes {} away and adds {}: nothing tells which functions of "
                            "the one are those of the other",
                            gone.path, made.path),
                fmt::format("make the change in {}", gone.path)));
  }
}

// Of what was written to a compiler there is no source to compile once more, and assembler has no functions to tell
// apart.
void Flow::refuse_opaque(const Record& record) {
  if (record.source == standard_input) {
    result_.refusals.push_back(refusal(
        "standard_input", record.output,
        fmt::format("{} is compiled from what its compiler reads from standard input, and the "
                    "diff changes it",
                    record.output),
        "let the build write that into a file, and compile the file"));
    return;
  }
  result_.refusals.push_back(refusal(
      "assembly_changed", record.output,
      fmt::format("the diff changes {}, which is made from the assembler source {}", record.output,
                  record.source),
      fmt::format("patch the function that calls it; --leave-out={} for the rest of the diff",
                  record.source)));
}

// Only the last of them is known.
void Flow::refuse_overwritten() {
  for (const auto& [output, record] : base_) {
    if (record.others.empty()) continue;
    for (const PatchedFile& file : files_) {
      if (!includes(record, source_ + "/" + file.path)) continue;
      result_.refusals.push_back(
          refusal("not_compiled", file.path,
                  fmt::format("the diff changes {}, and {} is compiled from several sources one "
                              "after the other, such "
                              "as {} and {}: only the last is known",
                              file.path, output, record.others.front(), record.source),
                  "let the build give each source an object of its own"));
      break;
    }
  }
}

// What else of a build changes with such a file, nobody but the build command knows.
void Flow::note_build_files() {
  std::size_t left = 0;
  for (const auto& [output, record] : base_) left += new_.contains(output) ? 0 : 1;
  for (const PatchedFile& file : files_) {
    const std::string name = std::filesystem::path(file.path).filename().string();
    const bool is_build_file = name.starts_with("Makefile") || name.starts_with("makefile") ||
                               name.starts_with("GNUmakefile") || name.starts_with("configure") ||
                               name.ends_with(".mk") || name.ends_with(".mak") ||
                               name.ends_with(".am");
    if (!is_build_file || left == 0 || is_beside(file.path)) continue;
    result_.notes.push_back(
        fmt::format("the diff changes {}: {} of {} objects, which the build command did not "
                    "compile again, are taken to be "
                    "as they were; if they would be others, change a source that they include too",
                    file.path, left, base_.size()));
  }
}

// F1
void Flow::check_compiled() {
  refuse_overwritten();
  note_build_files();
  for (const PatchedFile& file : files_) {
    const bool is_assembler = is_assembler_source(file.path);
    if (!is_c_family(file.path) && !is_assembler) continue;
    if (!file.new_text) refuse_moved(file);
    const std::string path = source_ + "/" + file.path;
    bool is_seen = false;
    for (const auto& [output, record] : base_) {
      const auto again = new_.find(output);
      if (!includes(record, path)) continue;
      is_seen = true;
      if (again == new_.end() && file.new_text && !is_opaque(record)) {
        result_.refusals.push_back(refusal(
            "not_compiled", output,
            fmt::format("{} is compiled from {}, which the diff changes, but the build command did "
                        "not compile it again",
                        output, file.path),
            "give a build command that does, such as make without -o or the whole build"));
      }
    }
    for (const auto& [output, record] : new_) is_seen |= includes(record, path);
    if (is_seen) continue;
    if (is_beside(file.path) || (!is_assembler && is_in_no_target(file.path))) {
      result_.notes.push_back(fmt::format("{} is not part of what was built", file.path));
      continue;
    }
    const bool is_piped = std::ranges::any_of(
        base_, [](const auto& one) { return one.second.source == standard_input; });
    result_.refusals.push_back(
        refusal("not_compiled", file.path,
                fmt::format("the diff changes {}, which the build command did not compile{}",
                            file.path, is_piped ? " from a file" : ""),
                is_piped ? "let the build compile it from a file, not from standard input"
                         : "give a build command that compiles it, or take it out of the diff"));
  }
  for (const auto& [output, record] : new_) {
    if (is_opaque(record)) {
      const Records& before = old_.contains(output) ? old_ : base_;
      const auto was = before.find(output);
      if (was == before.end() || !is_same_file(was->second.plain, record.plain)) {
        refuse_opaque(record);
      }
    } else if (!record.shadow_error.empty()) {
      result_.refusals.push_back(
          refusal("shadow", output,
                  fmt::format("{} cannot be compiled with sections for each function: {}",
                              record.source, record.shadow_error),
                  ""));
    }
  }
}

void Flow::list_units() {
  std::set<std::string> outputs;
  for (const Records* records : {&base_, &old_, &new_}) {
    for (const auto& [output, record] : *records) outputs.insert(output);
  }
  for (const std::string& output : outputs) {
    const auto base = base_.find(output);
    const auto older = old_.find(output);
    const auto newer = new_.find(output);
    const Record* any = newer != new_.end()   ? &newer->second
                        : older != old_.end() ? &older->second
                                              : &base->second;
    Unit unit;
    unit.source = any->source;
    unit.directory = any->directory;
    unit.command = any->command;
    unit.output = output;
    if (older != old_.end()) {
      unit.old_objects = {older->second.plain, older->second.shadow};
    } else if (base != base_.end()) {
      unit.old_objects = {base->second.plain, ""};
    }
    if (newer != new_.end() && !newer->second.shadow.empty()) {
      unit.new_objects = {newer->second.plain, newer->second.shadow};
      if (unit.old_objects.exist() && unit.old_objects.shadow.empty()) {
        // Compiled with the diff in and not again without it: made once, such as by a configure
        // script, or by a build that compares contents and found the old one in a cache.
        result_.refusals.push_back(
            refusal("not_compiled", output,
                    fmt::format("{} was compiled with the diff, and not again without it", output),
                    "switch off compiler caches that the build runs itself"));
      }
    }
    units_.push_back(std::move(unit));
  }
  result_.units_compiled = new_.size();
  for (Unit& unit : units_) leave_alone(unit);
}

// Compiled again, but not because of the diff: a build may write a date or a counter into a source. What
// is the same with and without the diff is not changed; and what is another one each time it is compiled
// says nothing about the diff, unless that touches what it is compiled from.
void Flow::leave_alone(Unit& unit) {
  if (!unit.is_changed() || unit.is_new()) return;
  if (is_same_file(unit.old_objects.shadow, unit.new_objects.shadow)) {
    unit.new_objects = {};
    return;
  }
  const Record& record = new_.at(unit.output);
  const bool is_touched = std::ranges::any_of(
      files_, [&](const PatchedFile& file) { return includes(record, source_ + "/" + file.path); });
  const auto base = base_.find(unit.output);
  if (is_touched || base == base_.end() ||
      is_same_file(base->second.plain, unit.old_objects.plain)) {
    return;
  }
  unit.new_objects = {};
  result_.notes.push_back(fmt::format(
      "{} is another one each time it is built, and the diff does not touch it: it stays as "
      "it is",
      unit.output));
}

// What differs in a unit that the diff changes is refused (placement.hpp). In another one it is told: a
// date that was compiled in, or sources that are not quite those of the program.
void Flow::count_identity(const Placement& placement) {
  for (std::size_t i = 0; i < units_.size(); ++i) {
    if (!placement.contains(i)) continue;
    std::size_t proven = 0;
    std::size_t differing = 0;
    std::string name;
    for (const PlacedFunction& function : placement.functions(i)) {
      if (function.match == PlacedFunction::Match::proven) ++proven;
      if (function.match != PlacedFunction::Match::differs) continue;
      if (++differing == 1) name = function.name;
    }
    result_.functions_proven += proven;
    result_.functions_compared += proven + differing;
    if (differing == 0 || units_[i].is_changed()) continue;
    result_.notes.push_back(fmt::format(
        "{}: {} of {} functions, such as {}, are not those of {}; the diff does not "
        "touch this unit",
        units_[i].output, differing, proven + differing, name, placement.image().path()));
  }
}

// B3. In a library that is no target objects are made as before.
void Flow::refuse_makers_elsewhere(const std::vector<Placement>& placements) {
  for (const Beside& one : beside_) {
    std::set<std::string> told;
    for (const std::string& path : one.makers) {
      bool is_compiled = false;
      bool is_in_target = false;
      for (std::size_t i = 0; i < units_.size(); ++i) {
        const auto source = std::filesystem::path(units_[i].directory) / units_[i].source;
        if (source.lexically_normal() != source_ + "/" + path) continue;
        is_compiled = true;
        is_in_target |= std::ranges::any_of(
            placements, [i](const Placement& placement) { return placement.contains(i); });
      }
      if (!is_compiled || is_in_target || is_beside(path) || !told.insert(path).second) continue;
      result_.refusals.push_back(
          refusal("layout_changed", path,
                  fmt::format("{} makes objects of {}, and is in no target: what lay beside others "
                              "is not forgotten there",
                              path, one.type),
                  "name what it is in, too (--target)"));
    }
  }
}

Status Flow::make_patch() {
  say("comparing");
  const auto begin = Clock::now();
  std::vector<Placement> placements;
  for (const RunningFile& file : running_) {
    auto placement = Placement::compute(file, units_);
    if (!placement) return pass(placement);
    placements.push_back(std::move(*placement));
  }
  std::vector<const Placement*> all;
  for (const Placement& placement : placements) all.push_back(&placement);
  for (std::size_t i = 0; i < units_.size(); ++i) {
    if (!units_[i].is_changed()) continue;
    result_.units_in_target += std::ranges::any_of(
        placements, [i](const Placement& placement) { return placement.contains(i); });
  }
  for (const Placement& placement : placements) {
    const std::size_t before = result_.functions_compared;
    count_identity(placement);
    const bool is_refused = !placement.refusals().empty();
    if (result_.functions_compared != before || is_refused || units_.empty()) continue;
    result_.refusals.push_back(
        refusal("not_the_target", placement.image().path(),
                fmt::format("of {} objects that the build command compiled, none is in {}",
                            units_.size(), placement.image().path()),
                "name the program that these sources make; it is the file that runs, or its copy"));
  }
  refuse_makers_elsewhere(placements);
  // Of objects that are in no target it does not matter whether they were compiled again.
  std::erase_if(result_.refusals, [&](const Refusal& one) {
    const auto unit = std::ranges::find(units_, one.unit, &Unit::output);
    if (unit == units_.end() || unit->is_new()) return false;
    const auto index = static_cast<std::size_t>(unit - units_.begin());
    return std::ranges::none_of(
        placements, [index](const Placement& placement) { return placement.contains(index); });
  });

  PatchOptions options = request_.patch;
  options.diff = hunks_;
  for (const PatchedFile& file : files_) {
    if (!is_c_family(file.path)) continue;
    options.sources.push_back(fmt::format(
        "{} {}", file.path,
        file.old_text ? content_hash(std::as_bytes(std::span(*file.old_text))) : "new"));
  }
  for (const std::string& name : request_.leave_out) {
    options.description +=
        fmt::format("{}left out: {}", options.description.empty() ? "" : "; ", name);
  }
  for (const Beside& one : beside_) {
    options.description +=
        fmt::format("{}beside: {}", options.description.empty() ? "" : "; ", one.type);
  }
  if (!additions_.empty()) options.additions.push_back(additions_);
  options.has_copies = !beside_.empty();
  auto patch = build_patch(units_, all, options);
  if (!patch) {
    result_.refusals.insert(result_.refusals.end(), patch.error().begin(), patch.error().end());
  } else {
    result_.notes.insert(result_.notes.end(), patch->report.notes.begin(),
                         patch->report.notes.end());
    if (result_.refusals.empty()) result_.patch = std::move(*patch);
  }
  result_.compare_s = seconds_since(begin);
  return {};
}

}  // namespace

Result<FlowResult> build_from_diff(const FlowRequest& request) { return Flow(request).run(); }

}  // namespace molt::builder
