// descriptor_room.hpp - an operation in a process that has no descriptor left.
//
//     DescriptorRoom room;   // a few can be opened until it goes, wherever the kernel permits it
//
// What a module opens belongs to the host, so operations run in the host's descriptor table, and what
// the operation itself opens for a moment has to fit into it.
//
// Roles      Threads of the runtime that run an operation, several at once.
// State      How many have room now, and the limits as the process had set them.
// Invariants D1 Nothing is changed where descriptors can be had. Else the soft limit is raised, the hard
//               one too where the process may (CAP_SYS_RESOURCE), and both are put back by the last
//               one who has room, unless somebody else has changed them meanwhile.
// Progress   Never waits for the host.
// Death      fork: the child's limits are put back; one that execs by vfork() or posix_spawn() just then
//            keeps the raised ones. A descriptor that the host opens meanwhile may have a number beyond
//            its own limit.
// Refuses    Nothing: where the limit cannot be raised, the operation meets EMFILE and says so.
// Checked by tests/base/descriptor_room_test.cpp, tests/attach (straits)
#pragma once

namespace molt {

class DescriptorRoom {
 public:
  DescriptorRoom();
  ~DescriptorRoom();
  DescriptorRoom(const DescriptorRoom&) = delete;
  DescriptorRoom& operator=(const DescriptorRoom&) = delete;

  // Whether some could be opened when it began.
  bool is_there() const { return is_there_; }

  static void before_fork();
  static void after_fork(bool child);

 private:
  bool is_there_ = true;
};

}  // namespace molt
