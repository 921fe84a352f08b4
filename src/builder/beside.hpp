// beside.hpp - new members of a type that lie beside its objects, in shadow variables, so that those that exist stay as
// they are: `--beside=TYPE`, where a fix gives a struct of C one member more.
//
//     old       struct a { int n; };               p->n
//     the fix   struct a { int n; char *more; };   p->more = q;    a = malloc(sizeof(struct a));
//     compiled  struct a { int n; };               molt_beside_of_a(p)->more = q;
//                                                  a = molt_beside_born(malloc(sizeof(struct a)), ID);
//
// What lies beside an object is zero when it is first looked at. For an object that was made before the patch that is a
// claim about the program, which only the author can make: so this is done where he says so, and never otherwise.
//
// Roles      flow.cpp, between applying the diff and building with it; the refusal of a layout offers it.
// Invariants B1 Members that existed are where they were: the definition is the old file's.
//            B2 Whoever names a new member names what lies beside: the definition has it no more, so that what was not
//               found does not compile. Whether an object is of the type the compiler says (_Generic): others have
//               members of the same name.
//            B3 No object inherits what lay beside another that had its address: wherever one is made, that is
//               forgotten. Who else knows how large the type is (copies, arrays, other types, a making that was not
//               understood) is found by compiling once more with a larger one, in which each making that was
//               understood still asks for the old size: any code that differs is refused, any type that has it as a
//               member, and that there is no making at all (beside_sizes.hpp), and a making in what is no target (flow.cpp).
//            B4 One patch at a time has members beside a type: two would not forget each other's.
// Limits     What lies beside an object stays when that is freed, until another is made there or the patch is reverted.
//            An object that is made by a thread which has not changed over yet is not seen being made.
// Refuses    C++; unions; what the diff does to members that exist; initialisers; more than 4096 bytes.
// Checked by tests/builder/beside_test.cpp, build_test.py
#pragma once

#include "builder/diff_file.hpp"

#include <string>
#include <string_view>
#include <vector>

namespace molt::builder {

struct Beside {
  std::string type;     // as the author calls it
  std::string file;     // that defines it
  std::string spelled;  // "struct a", or the name of a typedef
  std::string id;       // of the shadow variables: the same for the same members
  std::string type_id;  // of the one that says which patch has them
  std::vector<std::string> members;
  std::vector<std::string> makers;  // the files of the places where objects are made
};

// Changes the new texts alone. EINVAL: one that cannot be kept so, and why.
[[nodiscard]] Result<std::vector<Beside>> keep_beside(std::vector<PatchedFile>& files,
                                                      const std::vector<std::string>& types);

// B3. A new text with the types larger.
std::string grown(std::string_view text);

// What the new texts call, as a source for `--callbacks`. `objects`: of each running file its soname, "" for the
// program.
std::string beside_source(const std::vector<Beside>& types,
                          const std::vector<std::string>& objects);

}  // namespace molt::builder
