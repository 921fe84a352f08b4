#include "attach/seccomp.hpp"

#include "attach/target.hpp"

#include <linux/audit.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>

namespace molt::attach {

namespace {

// What stub, helper, loader and runtime do, with the arguments that filters look at. `needed`: an error
// instead of it makes the runtime useless; the others only must not kill.
struct Needed {
  const char* name;
  long number;
  bool needed = true;
  std::uint64_t arguments[6] = {};
};
constexpr Needed calls[] = {
    // The stub, on the borrowed thread, and the helper.
    {"rt_sigprocmask", SYS_rt_sigprocmask, true, {2, 1, 0, 8}},
    {"sigaltstack", SYS_sigaltstack, false, {0, 1}},
    {"mmap", SYS_mmap, true, {0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, ~0ull}},
    {"mprotect", SYS_mprotect, true, {0, 4096, PROT_READ | PROT_WRITE}},
    {"clone3", SYS_clone3, false},
    {"clone",
     SYS_clone,
     true,
     {CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM |
      CLONE_SETTLS | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID}},
    {"set_robust_list", SYS_set_robust_list, false},
    {"rseq", SYS_rseq, false},
    {"rt_sigreturn", SYS_rt_sigreturn, true},
    {"nanosleep", SYS_nanosleep, true, {1}},
    {"munmap", SYS_munmap, true},
    {"madvise", SYS_madvise, false},
    {"exit", SYS_exit, true},
    {"futex", SYS_futex, true, {0, FUTEX_WAIT}},
    {"futex", SYS_futex, true, {0, FUTEX_WAKE}},
    {"restart_syscall", SYS_restart_syscall, false},
    // The loader.
    {"openat", SYS_openat, true, {static_cast<std::uint64_t>(-100), 1, 02000000}},
    {"read", SYS_read, true},
    {"pread64", SYS_pread64, false},
    {"newfstatat", SYS_newfstatat, true, {3, 1, 1, 0x1000}},
    {"fstat", SYS_fstat, false},
    {"mmap", SYS_mmap, true, {0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED, 3}},
    {"close", SYS_close, true},
    {"memfd_create", SYS_memfd_create, false},
    // The runtime.
    {"getpid", SYS_getpid, false},
    {"gettid", SYS_gettid, false},
    {"prctl", SYS_prctl, false, {PR_SET_NAME}},
    {"membarrier", SYS_membarrier, false},
    {"get_robust_list", SYS_get_robust_list, false},
    {"close_range", SYS_close_range, false, {0, ~0u, 2}},
    {"unshare", SYS_unshare, false, {CLONE_FILES}},
    {"getdents64", SYS_getdents64, true},
    {"lseek", SYS_lseek, false},
    {"mkdirat", SYS_mkdirat, false},
    {"mkdir", SYS_mkdir, false},
    {"unlinkat", SYS_unlinkat, false},
    {"fchmodat", SYS_fchmodat, false},
    {"flock", SYS_flock, false},
    {"fcntl", SYS_fcntl, false},
    {"dup2", SYS_dup2, false},
    {"kill", SYS_kill, false},
    {"access", SYS_access, false},
    {"socket", SYS_socket, true, {AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK}},
    {"bind", SYS_bind, true},
    {"listen", SYS_listen, true},
    {"accept4", SYS_accept4, true},
    {"getsockopt", SYS_getsockopt, true, {0, SOL_SOCKET, SO_PEERCRED}},
    {"recvmsg", SYS_recvmsg, true},
    {"sendto", SYS_sendto, true},
    {"epoll_create1", SYS_epoll_create1, true},
    {"epoll_ctl", SYS_epoll_ctl, true},
    {"epoll_wait", SYS_epoll_wait, true},
    {"eventfd2", SYS_eventfd2, true},
    {"write", SYS_write, true},
    {"geteuid", SYS_geteuid, false},
    {"sched_yield", SYS_sched_yield, false},
    {"clock_nanosleep", SYS_clock_nanosleep, false},
    {"ftruncate", SYS_ftruncate, false},
    {"process_vm_readv", SYS_process_vm_readv, false},
    {"process_vm_writev", SYS_process_vm_writev, false},
    {"pwrite64", SYS_pwrite64, false},
    {"rt_sigaction", SYS_rt_sigaction, false},
    {"rt_sigtimedwait", SYS_rt_sigtimedwait, false},
    {"tgkill", SYS_tgkill, false},
    {"timer_create", SYS_timer_create, false},
    {"timer_settime", SYS_timer_settime, false},
    {"timer_delete", SYS_timer_delete, false},
    {"statfs", SYS_statfs, false},
    {"statx", SYS_statx, false},
    {"ioctl", SYS_ioctl, false},
    {"getrandom", SYS_getrandom, false},
    {"readlink", SYS_readlink, false},
    {"rmdir", SYS_rmdir, false},
    {"unlink", SYS_unlink, false},
    {"prlimit64", SYS_prlimit64, false},
    {"fchmod", SYS_fchmod, false},
    {"faccessat2", SYS_faccessat2, false},
    {"mremap", SYS_mremap, false},
    {"mincore", SYS_mincore, false},
    {"userfaultfd", SYS_userfaultfd, false},
    {"kcmp", SYS_kcmp, false},
    {"waitid", SYS_waitid, false},
    {"brk", SYS_brk, false},
    {"uname", SYS_uname, false},
    {"perf_event_open", SYS_perf_event_open, false},
    {"ppoll", SYS_ppoll, false},
    {"connect", SYS_connect, false},
    {"getrusage", SYS_getrusage, false},
    {"fstatfs", SYS_fstatfs, false},
    {"arch_prctl", SYS_arch_prctl, false},
    {"clock_gettime", SYS_clock_gettime, false},
    {"sched_getaffinity", SYS_sched_getaffinity, false},
};

}  // namespace

std::vector<long> calls_made() {
  std::vector<long> numbers;
  for (const Needed& call : calls) numbers.push_back(call.number);
  return numbers;
}

namespace {

// The kernel's order: the smallest, as signed, counts.
bool is_more_severe(std::uint32_t a, std::uint32_t b) {
  return static_cast<std::int32_t>(a & SECCOMP_RET_ACTION_FULL) <
         static_cast<std::int32_t>(b & SECCOMP_RET_ACTION_FULL);
}

std::string words_for(std::uint32_t answer) {
  switch (answer & SECCOMP_RET_ACTION_FULL) {
    case SECCOMP_RET_KILL_PROCESS:
    case SECCOMP_RET_KILL_THREAD:
      return "kills for it";
    case SECCOMP_RET_TRAP:
      return "sends SIGSYS for it";
    case SECCOMP_RET_ERRNO:
      return "answers it with errno " + std::to_string(answer & SECCOMP_RET_DATA);
    case SECCOMP_RET_USER_NOTIF:
      return "leaves it to another process";
    default:
      return "gives it to a tracer";
  }
}

}  // namespace

std::uint32_t answer_of(std::span<const sock_filter> filter, const seccomp_data& data) {
  std::uint32_t a = 0, x = 0;
  std::uint32_t memory[BPF_MEMWORDS] = {};
  const auto load = [&](std::uint32_t offset, std::uint32_t& to) {
    if (offset % 4 != 0 || offset + 4 > sizeof data) return false;
    std::memcpy(&to, reinterpret_cast<const char*>(&data) + offset, 4);
    return true;
  };
  // Jumps go forwards only, so it ends.
  for (std::size_t at = 0; at < filter.size(); ++at) {
    const sock_filter& i = filter[at];
    const std::uint32_t operand = BPF_SRC(i.code) == BPF_X ? x : i.k;
    switch (BPF_CLASS(i.code)) {
      case BPF_LD:
        if (BPF_MODE(i.code) == BPF_ABS) {
          if (!load(i.k, a)) return SECCOMP_RET_KILL_PROCESS;
        } else if (BPF_MODE(i.code) == BPF_IMM) {
          a = i.k;
        } else if (BPF_MODE(i.code) == BPF_LEN) {
          a = sizeof data;
        } else if (BPF_MODE(i.code) == BPF_MEM && i.k < BPF_MEMWORDS) {
          a = memory[i.k];
        } else {
          return SECCOMP_RET_KILL_PROCESS;
        }
        break;
      case BPF_LDX:
        if (BPF_MODE(i.code) == BPF_IMM) {
          x = i.k;
        } else if (BPF_MODE(i.code) == BPF_LEN) {
          x = sizeof data;
        } else if (BPF_MODE(i.code) == BPF_MEM && i.k < BPF_MEMWORDS) {
          x = memory[i.k];
        } else {
          return SECCOMP_RET_KILL_PROCESS;
        }
        break;
      case BPF_ST:
      case BPF_STX:
        if (i.k >= BPF_MEMWORDS) return SECCOMP_RET_KILL_PROCESS;
        memory[i.k] = BPF_CLASS(i.code) == BPF_ST ? a : x;
        break;
      case BPF_ALU:
        switch (BPF_OP(i.code)) {
          case BPF_ADD:
            a += operand;
            break;
          case BPF_SUB:
            a -= operand;
            break;
          case BPF_MUL:
            a *= operand;
            break;
          case BPF_DIV:
            if (operand == 0) return SECCOMP_RET_KILL_PROCESS;
            a /= operand;
            break;
          case BPF_OR:
            a |= operand;
            break;
          case BPF_AND:
            a &= operand;
            break;
          case BPF_XOR:
            a ^= operand;
            break;
          case BPF_LSH:
            a = operand < 32 ? a << operand : 0;
            break;
          case BPF_RSH:
            a = operand < 32 ? a >> operand : 0;
            break;
          case BPF_NEG:
            a = -a;
            break;
          default:
            return SECCOMP_RET_KILL_PROCESS;
        }
        break;
      case BPF_JMP: {
        if (BPF_OP(i.code) == BPF_JA) {
          at += i.k;
          break;
        }
        bool holds;
        switch (BPF_OP(i.code)) {
          case BPF_JEQ:
            holds = a == operand;
            break;
          case BPF_JGT:
            holds = a > operand;
            break;
          case BPF_JGE:
            holds = a >= operand;
            break;
          case BPF_JSET:
            holds = (a & operand) != 0;
            break;
          default:
            return SECCOMP_RET_KILL_PROCESS;
        }
        at += holds ? i.jt : i.jf;
        break;
      }
      case BPF_RET:
        return BPF_RVAL(i.code) == BPF_A ? a : i.k;
      case BPF_MISC:
        if (BPF_MISCOP(i.code) == BPF_TAX) {
          x = a;
        } else {
          a = x;
        }
        break;
    }
  }
  return SECCOMP_RET_KILL_PROCESS;
}

Status check_filters(std::span<const Filter> filters) {
  for (const Needed& call : calls) {
    seccomp_data data = {};
    data.nr = static_cast<int>(call.number);
    data.arch = AUDIT_ARCH_X86_64;
    // Somewhere in a library: where the call is made is nothing that filters go by.
    data.instruction_pointer = 0x7f0000001000;
    std::copy(std::begin(call.arguments), std::end(call.arguments), data.args);
    std::uint32_t answer = SECCOMP_RET_ALLOW;
    for (const Filter& filter : filters) {
      const std::uint32_t one = answer_of(filter, data);
      if (is_more_severe(one, answer)) answer = one;
    }
    const std::uint32_t action = answer & SECCOMP_RET_ACTION_FULL;
    if (action == SECCOMP_RET_ALLOW || action == SECCOMP_RET_LOG) continue;
    if (action == SECCOMP_RET_ERRNO && !call.needed) continue;
    return fail(EPERM,
                "its seccomp filter does not allow %s, which the runtime needs: it %s; make it a "
                "host, which starts the runtime before the filter",
                call.name, words_for(answer).c_str());
  }
  return {};
}

bool has_filters(pid_t pid, pid_t tid) {
  const std::string status =
      read_text("/proc/" + std::to_string(pid) + "/task/" + std::to_string(tid) + "/status");
  const std::size_t at = status.find("\nSeccomp:");
  return at != status.npos && std::atoi(status.c_str() + at + 9) == SECCOMP_MODE_FILTER;
}

Status check_filters(pid_t tid) {
  std::vector<Filter> filters;
  constexpr std::size_t most_filters = 1000;
  for (std::size_t i = 0; i < most_filters; ++i) {
    const long size = ptrace(PTRACE_SECCOMP_GET_FILTER, tid, i, nullptr);
    if (size < 0 && errno == ENOENT) return check_filters(filters);
    if (size < 0) {
      return fail(
          EPERM,
          "a seccomp filter guards it that cannot be looked at (%s), and that might kill it "
          "for a call that the runtime makes; be root, outside of any filter, or make it a "
          "host, which starts the runtime before the filter",
          errno_name(errno));
    }
    Filter filter(static_cast<std::size_t>(size));
    if (ptrace(PTRACE_SECCOMP_GET_FILTER, tid, i, filter.data()) != size) break;
    filters.push_back(std::move(filter));
  }
  return fail(EPERM, "its seccomp filters cannot be read");
}

}  // namespace molt::attach
