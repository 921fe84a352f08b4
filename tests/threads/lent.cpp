// lent: a process that gave up its privileges, and root that lends it its threads' files; and what it must
// not take. As root; exit code 77 otherwise.
//
//   the process    says who is missing and where its desk is; takes; looks at its threads
//   the lender     sends what belongs to others, sends as nobody, sends what was asked for

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <memory>
#include <string>
#include <vector>

#include "threads/lent.hpp"
#include "victims.hpp"

using namespace molt;
using namespace molt::threads;

namespace {

constexpr int victims_count = 3;
constexpr uid_t nobody = 65534;

struct Answer {
  int taken = -1;
  int missing = 0;
  int tids[64] = {};
  char desk[100] = {};
  bool is_out = false;     // a thread that sleeps elsewhere
  bool is_inside = false;  // one that sleeps in the code
};

bool fail(const char* what, const Answer& answer) {
  std::printf("VIOLATION: %s (%d taken, %d missing)\n", what, answer.taken, answer.missing);
  return false;
}

// The process that gave up its privileges: for each byte of `questions` an Answer.
int process(int questions, int answers) {
  victims::Code code;
  victims::Gate gate;
  if (setresgid(nobody, nobody, nobody) != 0 || setresuid(nobody, nobody, nobody) != 0) return 2;
  prctl(PR_SET_DUMPABLE, 0);
  victims::Victim inside([&] { code.call(victims::Gate::wait_at, &gate); });
  std::vector<std::unique_ptr<victims::Victim>> others;
  for (int i = 1; i < victims_count; ++i) {
    others.push_back(std::make_unique<victims::Victim>([&] { gate.wait(); }));
  }
  victims::until([&] { return gate.waiting() == victims_count; });
  char question;
  while (read(questions, &question, 1) == 1) {
    Answer answer;
    if (auto loans = take_loans()) {
      answer.taken = static_cast<int>(loans->taken);
      answer.missing = static_cast<int>(loans->missing.size());
      for (std::size_t i = 0; i < loans->missing.size() && i < std::size(answer.tids); ++i) {
        answer.tids[i] = loans->missing[i];
      }
      std::strncpy(answer.desk, loans->desk.c_str(), sizeof answer.desk - 1);
    } else {
      std::printf("%s\n", loans.error().detail);
    }
    const auto verdict = [&](const victims::Victim& victim) {
      auto finding = look_at(victim.tid(), code.range());
      return finding ? finding->verdict : Verdict::unknown;
    };
    answer.is_out = verdict(*others[0]) == Verdict::out;
    answer.is_inside = verdict(inside) == Verdict::inside;
    if (write(answers, &answer, sizeof answer) != sizeof answer) break;
  }
  gate.open();
  return 0;
}

class Lender {
 public:
  Lender(pid_t pid, int questions, int answers)
      : pid_(pid), questions_(questions), answers_(answers) {}

  Answer ask() const {
    Answer answer;
    if (write(questions_, "?", 1) != 1 ||
        read(answers_, &answer, sizeof answer) != static_cast<ssize_t>(sizeof answer)) {
      std::printf("the process has ended\n");
      std::exit(1);
    }
    return answer;
  }
  Fd file(pid_t pid, int tid, const char* name = "syscall") const {
    const std::string path =
        "/proc/" + std::to_string(pid) + "/task/" + std::to_string(tid) + "/" + name;
    return Fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  }
  pid_t pid() const { return pid_; }

  static bool send(const Answer& to, std::vector<std::int32_t> tids, const std::vector<Fd>& files) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::size_t length = std::strlen(to.desk);
    std::memcpy(address.sun_path + 1, to.desk, length);
    const Fd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    if (connect(socket.get(), reinterpret_cast<sockaddr*>(&address),
                static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + length)) != 0) {
      return false;
    }
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * most_loans)] = {};
    iovec part{tids.data(), tids.size() * sizeof tids[0]};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = CMSG_SPACE(sizeof(int) * files.size());
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int) * files.size());
    for (std::size_t i = 0; i < files.size(); ++i) {
      const int number = files[i].get();
      std::memcpy(CMSG_DATA(rights) + i * sizeof number, &number, sizeof number);
    }
    return sendmsg(socket.get(), &header, MSG_NOSIGNAL) > 0;
  }

 private:
  pid_t pid_;
  int questions_, answers_;
};

bool lend(const Lender& lender) {
  const Answer first = lender.ask();
  // The first thread is one of them.
  if (first.missing != victims_count + 1 || first.desk[0] == '\0' || first.is_out) {
    return fail("nobody, or not all, are missing", first);
  }
  const auto all_of_them = [&](auto&& file_for) {
    std::vector<std::int32_t> tids(first.tids, first.tids + first.missing);
    std::vector<Fd> files;
    for (std::size_t i = 0; i < tids.size(); ++i) files.push_back(file_for(i));
    return std::pair(std::move(tids), std::move(files));
  };
  const auto own = [&](std::size_t i) { return lender.file(lender.pid(), first.tids[i]); };

  struct Wrong {
    const char* what;
    std::function<Fd(std::size_t)> file;
  } const wrongs[] = {
      {"another thread's file is taken",
       [&](std::size_t i) { return own((i + 1) % static_cast<std::size_t>(first.missing)); }},
      {"another process's file is taken",
       [&](std::size_t) { return lender.file(getpid(), gettid()); }},
      {"another file of the thread is taken",
       [&](std::size_t i) { return lender.file(lender.pid(), first.tids[i], "stat"); }},
      {"an ordinary file is taken",
       [&](std::size_t) { return Fd(open("/proc/self/exe", O_RDONLY | O_CLOEXEC)); }},
  };
  for (const Wrong& wrong : wrongs) {
    auto [tids, files] = all_of_them(wrong.file);
    if (!Lender::send(first, tids, files)) return fail("nobody is at the desk", first);
    const Answer after = lender.ask();
    if (after.taken != 0 || after.missing != first.missing) return fail(wrong.what, after);
  }
  // The right files from one who could not have opened them.
  auto [tids, files] = all_of_them(own);
  const int sent = victims::in_child([&] {
    if (setresuid(nobody, nobody, nobody) != 0) return 2;
    return Lender::send(first, tids, files) ? 0 : 1;
  });
  const Answer unmoved = lender.ask();
  if (sent != 0 || unmoved.taken != 0) return fail("somebody is taken for root", unmoved);

  if (!Lender::send(first, tids, files)) return fail("nobody is at the desk", unmoved);
  const Answer done = lender.ask();
  if (done.taken != first.missing || done.missing != 0 || done.desk[0] != '\0') {
    return fail("what was lent is not taken", done);
  }
  if (!done.is_out || !done.is_inside) return fail("threads cannot be looked at", done);
  if (Lender::send(first, tids, files)) return fail("the desk stays open", done);
  return true;
}

}  // namespace

int main() {
  if (geteuid() != 0) {
    std::puts("needs root, who lends");
    return 77;
  }
  std::setvbuf(stdout, nullptr, _IONBF, 0);
  int questions[2], answers[2];
  if (pipe2(questions, O_CLOEXEC) != 0 || pipe2(answers, O_CLOEXEC) != 0) return 2;
  const pid_t child = fork();
  if (child == 0) {
    close(questions[1]);
    close(answers[0]);
    _exit(process(questions[0], answers[1]));
  }
  close(questions[0]);
  close(answers[1]);
  const bool good = lend({child, questions[1], answers[0]});
  close(questions[1]);
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (status != 0) std::printf("the process ended with %#x\n", static_cast<unsigned>(status));
  return good && status == 0 ? 0 : 1;
}
