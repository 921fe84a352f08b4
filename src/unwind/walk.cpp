#include "unwind/walk.hpp"

#include <dwarf.h>
#include <elfutils/libdwfl.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "base/fd.hpp"
#include "unwind/expression.hpp"

namespace molt::unwind {
namespace {

constexpr std::size_t most_frames = 4096;

// What is not on the stack's path by itself: bits of the call frame information that lie in symbols'
// files are enough; separate debug information is not looked for.
int no_debuginfo(Dwfl_Module*, void**, const char*, Dwarf_Addr, const char*, const char*, GElf_Word,
                 char**) {
  return -1;
}

const Dwfl_Callbacks callbacks = {dwfl_linux_proc_find_elf, no_debuginfo, nullptr, nullptr};

struct Snapshot {
  Registers registers;
};

// "NUMBER ARGUMENTS... SP PC", "-1 SP PC" or "running".
Result<Registers> read_registers(pid_t pid, pid_t tid) {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/%d/task/%d/syscall", pid, tid);
  const Fd fd(::open(path, O_RDONLY | O_CLOEXEC));
  char text[256];
  const ssize_t n = fd ? read(fd.get(), text, sizeof text - 1) : -1;
  if (n <= 0) {
    const int code = errno == ENOENT ? ESRCH : errno;
    return fail_errno(code, "cannot see the registers of thread %d of process %d", tid, pid);
  }
  text[n] = '\0';
  if (text[0] == 'r') return fail(EAGAIN, "thread %d runs", tid);
  std::uint64_t words[9];
  int count = 0;
  char* at = text;
  for (char* end; count < 9; ++count, at = end) {
    words[count] = std::strtoull(at, &end, 0);
    if (end == at) break;
  }
  Registers registers;
  if (count < 3) return fail(EPROTO, "cannot understand %s: %.100s", path, text);
  registers[dwarf_rsp] = words[count - 2];
  registers[dwarf_rip] = words[count - 1];
  if (*registers[dwarf_rip] == 0) return fail(ESRCH, "thread %d has ended", tid);
  if (count == 9) {
    // rdi, rsi, rdx, r10, r8, r9
    constexpr unsigned dwarf_arguments[] = {5, 4, 1, 10, 8, 9};
    for (int i = 0; i < 6; ++i) registers[dwarf_arguments[i]] = words[1 + i];
  }
  return registers;
}

// How often the thread was put on a CPU; 0 if the kernel does not count, or the thread has ended.
std::uint64_t run_count(pid_t pid, pid_t tid) {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/%d/task/%d/schedstat", pid, tid);
  const Fd fd(::open(path, O_RDONLY | O_CLOEXEC));
  char text[96];
  const ssize_t n = fd ? read(fd.get(), text, sizeof text - 1) : -1;
  if (n <= 0) return 0;
  text[n] = '\0';
  unsigned long long ran, waited, runs;
  return std::sscanf(text, "%llu %llu %llu", &ran, &waited, &runs) == 3 ? runs : 0;
}

}  // namespace

struct Process::State {
  pid_t pid = 0;
  Dwfl* dwfl = nullptr;
  Fd memory;
  ~State() {
    if (dwfl != nullptr) dwfl_end(dwfl);
  }

  std::optional<std::uint64_t> read_word(std::uint64_t address) const {
    std::uint64_t word;
    if (pread(memory.get(), &word, sizeof word, static_cast<off_t>(address)) != sizeof word) {
      return std::nullopt;
    }
    return word;
  }
  void name(Frame& frame, std::uint64_t looked_up) const;
  // The caller's registers from a frame's. Empty text: done; `outermost` if there is no caller.
  std::string step(Frame& frame, std::uint64_t looked_up, Registers& registers, bool& outermost);
};

void Process::State::name(Frame& frame, std::uint64_t looked_up) const {
  Dwfl_Module* module = dwfl_addrmodule(dwfl, looked_up);
  if (module == nullptr) return;
  const char* path = nullptr;
  dwfl_module_info(module, nullptr, nullptr, nullptr, nullptr, nullptr, &path, nullptr);
  if (path == nullptr) {
    path = dwfl_module_info(module, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr);
  }
  if (path != nullptr) frame.object = path;
  GElf_Off offset = 0;
  GElf_Sym symbol;
  const char* function =
      dwfl_module_addrinfo(module, looked_up, &offset, &symbol, nullptr, nullptr, nullptr);
  if (function != nullptr) {
    frame.function = function;
    frame.offset = offset + (frame.pc - looked_up);
  }
}

std::string Process::State::step(Frame& frame, std::uint64_t looked_up, Registers& registers,
                                 bool& outermost) {
  Dwfl_Module* module = dwfl_addrmodule(dwfl, looked_up);
  if (module == nullptr) return "no loaded object has this code";
  Dwarf_Addr bias = 0;
  Dwarf_CFI* cfi = dwfl_module_eh_cfi(module, &bias);
  Dwarf_Frame* found = nullptr;
  if (cfi == nullptr || dwarf_cfi_addrframe(cfi, looked_up - bias, &found) != 0) {
    return "no call frame information";
  }
  const std::unique_ptr<Dwarf_Frame, decltype(&free)> rules(found, free);
  Dwarf_Addr start, end;
  bool is_signal = false;
  if (dwarf_frame_info(found, &start, &end, &is_signal) == -1) return "bad call frame information";
  frame.is_signal = is_signal;

  const ReadWord read = [this](std::uint64_t address) { return read_word(address); };
  Dwarf_Op* ops = nullptr;
  std::size_t count = 0;
  if (dwarf_frame_cfa(found, &ops, &count) != 0 || count == 0) return "bad call frame information";
  const auto cfa = evaluate({ops, count}, registers, std::nullopt, read);
  if (!cfa) return "the frame hangs on a register that nobody knows";
  // The rule gives the frame's address as the location of what is below it.
  frame.cfa = cfa->value;

  Registers caller;
  for (unsigned number = 0; number < caller.size(); ++number) {
    Dwarf_Op room[3];
    if (dwarf_frame_register(found, static_cast<int>(number), room, &ops, &count) != 0) continue;
    if (count == 0) {
      // Unsaved, or not to be had: libdw tells them apart by the pointer.
      if (ops == nullptr) caller[number] = registers[number];
      if (ops != nullptr && number == dwarf_rip) outermost = true;
      continue;
    }
    const auto value = evaluate({ops, count}, registers, frame.cfa, read);
    if (!value) continue;
    if (number == dwarf_rip && value->is_address) frame.return_slot = value->value;
    caller[number] = value->is_address ? read_word(value->value) : value->value;
  }
  if (outermost) return "";
  if (!caller[dwarf_rip]) return "its return address cannot be read";
  if (!caller[dwarf_rsp]) return "its caller's stack pointer is not known";
  // A frame without size is none; a handler's frame may lie on another stack than what it
  // interrupted.
  if (*caller[dwarf_rsp] <= *registers[dwarf_rsp] && !is_signal) return "its frame has no size";
  registers = caller;
  return "";
}

Process::Process(std::unique_ptr<State> state) : state_(std::move(state)) {}
Process::Process(Process&&) noexcept = default;
Process& Process::operator=(Process&&) noexcept = default;
Process::~Process() = default;

Result<Process> Process::open(pid_t pid) {
  auto state = std::make_unique<State>();
  state->pid = pid;
  char path[32];
  std::snprintf(path, sizeof path, "/proc/%d/mem", pid);
  state->memory.reset(::open(path, O_RDONLY | O_CLOEXEC));
  if (!state->memory) {
    const int code = errno == ENOENT ? ESRCH : errno;
    return fail_errno(code, "cannot read the memory of process %d", pid);
  }
  state->dwfl = dwfl_begin(&callbacks);
  if (state->dwfl == nullptr || dwfl_linux_proc_report(state->dwfl, pid) != 0 ||
      dwfl_report_end(state->dwfl, nullptr, nullptr) != 0) {
    return fail(EIO, "cannot find what process %d has loaded: %s", pid, dwfl_errmsg(-1));
  }
  return Process(std::move(state));
}

Result<Walk> Process::walk(pid_t tid) {
  const std::uint64_t runs = run_count(state_->pid, tid);
  auto registers = read_registers(state_->pid, tid);
  if (!registers) return pass(registers);
  Walk walk;
  walk.runs = runs;
  walk.sp = walk.proven_end = **(registers->begin() + dwarf_rsp);

  // The pc of a caller is behind its call, perhaps in the next function already.
  bool is_call = false;
  while (walk.frames.size() < most_frames) {
    Frame frame;
    frame.pc = *(*registers)[dwarf_rip];
    const std::uint64_t looked_up = is_call ? frame.pc - 1 : frame.pc;
    state_->name(frame, looked_up);
    bool outermost = false;
    walk.stopped = state_->step(frame, looked_up, *registers, outermost);
    if (!walk.stopped.empty()) {
      if (!frame.function.empty()) walk.stopped += " (" + frame.function + ")";
      frame.cfa = frame.return_slot = 0;
      walk.frames.push_back(std::move(frame));
      break;
    }
    is_call = !frame.is_signal;
    if (outermost) frame.return_slot = 0;
    // Behind a signal's frame the stack may be another one: what is proven there is not told.
    const bool same_stack = frame.cfa > walk.proven_end || walk.frames.empty();
    if (same_stack && !frame.is_signal) walk.proven_end = std::max(walk.proven_end, frame.cfa);
    walk.complete = outermost || *(*registers)[dwarf_rip] == 0;
    const bool is_signal = frame.is_signal;
    walk.frames.push_back(std::move(frame));
    if (walk.complete) break;
    if (is_signal && *(*registers)[dwarf_rsp] < walk.proven_end) {
      walk.stopped = "a signal interrupted it on another stack";
      break;
    }
    if (is_signal) walk.proven_end = *(*registers)[dwarf_rsp];
  }
  if (!walk.complete && walk.stopped.empty()) walk.stopped = "more frames than can be";
  if (run_count(state_->pid, tid) != runs) {
    return fail(EAGAIN, "thread %d woke while it was unwound; try again", tid);
  }
  return walk;
}

Word Walk::judge(std::uint64_t address) const {
  for (const Frame& frame : frames) {
    if (frame.return_slot == address && address != 0) return Word::live;
  }
  return address < proven_end ? Word::stale : Word::open;
}

Result<Walk> walk(pid_t pid, pid_t tid) {
  auto process = Process::open(pid);
  if (!process) return pass(process);
  return process->walk(tid);
}

const char* to_text(Word word) {
  switch (word) {
    case Word::live:
      return "live";
    case Word::stale:
      return "stale";
    case Word::open:
      return "open";
  }
  return "?";
}

}  // namespace molt::unwind
