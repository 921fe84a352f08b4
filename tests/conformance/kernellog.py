"""Recorded kernel logs and ours: what they consist of, what is left out of a comparison, and where
Molt deliberately differs. `compare` judges; the tables LEFT_OUT, REWRITTEN and DIFFERENCES say what
is not compared, or otherwise, and why.

A log of the kernel's own tests (ST-...) is one sequence of lines, compared as it is. Any other log is
four sequences, each compared for itself, because recorded logs keep the order between
kinds of lines by block only:

    results     kmt init om_life.ko init_ret=-5 -> -EIO (0.1s)
    events          | om_notify: event COMING module=om_life state=COMING refcount=1 try_get=1
    modules         proc: om_life 16384 1 om_dep, Live 0xADDR (OE)
    attributes  everything else

Results of commands that ran at once ("A: kmt ...") are compared as a multiset.
"""
import copy
import difflib
import re
from dataclasses import dataclass, field

KINDS = ("results", "events", "modules", "attributes")

# Scenarios whose recorded logs are kept back from this tree: their scripts may look at more, or
# tell more, than ours do.
KEPT_BACK = ("L06b", "L15", "L16", "L17b", "L19", "L22",
             "K06", "K07", "K12", "K14", "K18", "K19", "K22", "K23", "K26")

# The kernel's own tests that came after the recorded ones and are not gone through here: why, and what
# shows instead that the same holds.
SHOWN_ELSEWHERE = {
    "ST-ftrace-2": "a replacement is a module's function, and can be traced and probed as any other",
}

# Whom scenarios stand in for, and why they are not the kernel's to the letter.
STANDS_FOR = {
    "ST-syscall-1": "a function of the host that 16 threads call for getpid(): the runtime itself calls that "
                    "while it patches, and it is refused",
    "ST-kprobe-1": "an int3 that somebody else has written to the entry, for a kprobe with a post handler",
    "ST-kprobe-2": "a hook on the function, which is told of calls, for a kprobe without a post handler",
    "ST-livepatch-4": "three patches stacked before the one that replaces them, as the later ST-livepatch-3",
    "ST-module-function-1": "a Molt module for the target",
    "ST-module-function-2": "a Molt module for the target",
    "ST-ftrace-1": "the switch host/redirect for ftrace_enabled",
}


@dataclass
class Log:
    title: str = ""
    results: list = field(default_factory=list)
    concurrent: list = field(default_factory=list)
    events: list = field(default_factory=list)
    modules: list = field(default_factory=list)
    attributes: list = field(default_factory=list)

    def lines(self, kind):
        return sorted(self.concurrent) if kind == "concurrent" else getattr(self, kind)


def parse(text):
    log = Log()
    for line in text.splitlines():
        if line.startswith("# ") and not log.title:
            log.title = line[2:]
        elif line.startswith("kmt "):
            log.results.append(line)
        elif re.match(r"[A-Z]: kmt ", line):
            log.concurrent.append(line)
        elif line.startswith("    | "):
            log.events.append(re.sub(r"^t=\d+\.\d+ ", "", line[6:]))
        elif re.match(r"% |livepatch: |test_klp|modprobe: ", line):
            log.events.append(line)
        elif line.startswith("    proc: "):
            log.modules.append(line[10:])
        elif line.strip():
            log.attributes.append(line.strip())
    return log


# ---- What is not compared. Applied to the expected and to the actual log alike.

# (kind, a line matching this is left out, reason)
LEFT_OUT = [
    ("events", r"\S+: loading out-of-tree module taints kernel\.",
     "no module of a process belongs to its source tree"),
    ("events", r"\S+: module verification failed: .*",
     "modules are not signed"),
    ("events", r"Disabling lock debugging due to kernel taint",
     "the kernel's lock checker"),
    ("events", r"\s*(\? )?[\w.]+\+0x[0-9a-f]+/0x[0-9a-f]+( \[\w+\])?",
     "a line of a stack dump"),
    ("events", r"\s*(-+\[ (cut here|end trace).*|WARNING: CPU: .*|Modules linked in: .*|CPU: \d+ PID: .*"
               r"|Hardware name: .*|(RIP|RSP|RAX|RDX|RBP|R10|R13|FS|CS|CR2|Code|Call Trace): ?.*"
               r"|Call Trace:|</?TASK>)",
     "a line of a register dump"),
    ("events", r"\s*do_init_module: loading module anyway\.\.\.",
     "Molt does not load it anyway (D3)"),
    ("attributes", r"[-dlrwx]{10} +\d+ \d+ \d+ +\d+ \w+ +\d+ [\d:]+ \S+|total \d+",
     "ls -l of a directory"),
    ("attributes", r"during \w+:|ORACLE-DONE|\(.*\)|-> .*",
     "headings of the recording script"),
    ("attributes", r"\./\S+/(immediate|replace|stack_order)=\d+",
     "attributes that newer kernels, or only Molt, have"),
    ("events", r"\w+: tainting (kernel|process) with TAINT_LIVEPATCH",
     "told once in the life of a kernel, or of a process"),
    ("events", r"livepatch: klp_try_switch_task: .*",
     "a debugging line of one function, off in the other recordings"),
    ("events", r"sysfs: cannot create duplicate filename .*|kobject_add_internal failed for .*",
     "how sysfs refuses a name"),
    ("events", r"hrtimer: interrupt took \d+ ns|PKRU: \w+",
     "not about livepatches"),
    ("attributes", r"[-d][-rwx]{9} (drivers|notes|sections|uevent)"
                   r"|[-d][-rwx]{9} (callbacks|enabled|exceptions|license|requests)",
     "attributes that only the kernel, or only Molt, has"),
]

# (kind, pattern, replacement, reason)
REWRITTEN = [
    ("results", r" \(\d+\.\d+s\)$", "", "times"),
    ("results", r" (\w+_ms)=\d+", "", "times"),
    ("results", r" (?!init_ret=|nosuch=)\w+=\S+", "",
     "how a probe module is told to misbehave is its own affair; its log and the result show it"),
    ("results", r" +->", " ->", "how a missing argument is printed"),
    ("events", r"version magic '[^']*' should be '[^']*'", "version magic 'A' should be 'B'",
     "what kernel and modules, host and modules agree on"),
    ("events", r"^(\w+: (?:resident|pinned)): .*", r"\1", "why memory stays is told in Molt's words"),
    ("events", r"\bregister redirect for function\b", "register ftrace handler for function",
     "what redirects a function"),
    ("events", r"<\w+, (\w+)>", r"<POINTER, \1>", "addresses"),
    ("events", r"\bexit r=-(512|4)\b", "exit r=INTERRUPTED", "ERESTARTSYS is EINTR outside the kernel"),
    ("events", r"\bprocess tainted\b", "kernel tainted", "who is tainted"),
    ("events", r"\btaints process\b", "taints kernel", "who is tainted"),
    ("modules", r"^(\S+) \d+ ", r"\1 SIZE ", "sizes"),
    ("modules", r" 0x\w+", " ADDRESS", "addresses"),
    ("modules", r"\(([A-Z]*)([-+]?)\)$", lambda m: f"({letters(m[1])}{m[2]})",
     "recorded modules are out of tree and unsigned: O and E"),
    ("modules", r" \(\)$", "", "no taint left"),
    ("attributes", r"^(taint=|)([A-Z]+)$", lambda m: m[1] + (letters(m[2]) or ("" if m[1] else "none")),
     "recorded modules are out of tree and unsigned: O and E"),
    ("attributes", r"^(coresize|initsize)=\d+$", r"\1=N", "sizes"),
    ("attributes", r"^srcversion=\S+$", "srcversion=ID", "a hash of the source"),
    ("attributes", r"^(\d{4,})$", lambda m: "tainted=" + ("R" if int(m[1]) & 8 else ""),
     "the kernel's taint mask; all but R (forced unload) was there before"),
    ("attributes", r"^tainted=([A-Z]*)$", lambda m: "tainted=" + ("R" if "R" in m[1] else ""),
     "Molt's letters; as above"),
    ("attributes", r"^\S+: line \d+: echo: write error", "write error", "the recording script"),
    ("attributes", r" /sys/module/\w+/(\w+)$", r" \1", "where the objects are shown"),
    ("attributes", r"^(holders: \S+ -> )(?:\S*/)?(\S+)$", r"\1\2", "how a link spells its target"),
    ("attributes", r"^(?:\w+ )*holders (?:\w+ ?)*$", lambda m: shared_names(m[0]),
     "attributes that only the kernel, or only Molt, has"),
]


def enabling_is_asynchronous(events):
    """Whether the transition is over when klp_enable_patch() returns is open in the kernel, too."""
    events = list(events)
    for line in [line for line in events if re.match(r"\w+: klp_enable_patch=0$", line)]:
        name = line.split(":")[0]
        started = f"livepatch: '{name}': starting patching transition"
        at = events.index(line)
        nearest = [i for i in range(at) if events[i] == started]
        if nearest:
            events.insert(nearest[-1] + 1, events.pop(at))
    return events


def callers_race_with_the_end(events):
    """A thread whose change ends a transition calls the new function before that is told, or after."""
    events = list(events)
    for line in [line for line in events if re.match(r"\w+: new_uslow$", line)]:
        at = events.index(line)
        left = [i for i in range(at) if re.search(r"\bok_uslow\(orig\) exit ", events[i])]
        if left:
            events.insert(left[-1] + 1, events.pop(at))
    return events


def letters(taint):
    return "".join(letter for letter in taint if letter not in "OE")


def shared_names(listing):
    only_one_has = {"drivers", "notes", "sections", "uevent",
                    "callbacks", "enabled", "exceptions", "license", "requests"}
    return " ".join(sorted(set(listing.split()) - only_one_has))


def rewritten(log):
    log = copy.deepcopy(log)
    for kind, which in [*((kind, kind) for kind in KINDS), ("results", "concurrent")]:
        rules = [(pattern, replacement) for of, pattern, replacement, _ in REWRITTEN if of == kind]
        lines = getattr(log, which)
        for pattern, replacement in rules:
            lines = [re.sub(pattern, replacement, line) for line in lines]
        setattr(log, which, lines)
    return log


def normalised(log):
    log = rewritten(log)
    log.events = callers_race_with_the_end(enabling_is_asynchronous(log.events))
    for kind in KINDS:
        patterns = [pattern for of, pattern, _ in LEFT_OUT if of == kind]
        setattr(log, kind, [line for line in getattr(log, kind)
                            if not any(re.fullmatch(pattern, line) for pattern in patterns)])
    return log


# ---- Where Molt deliberately differs from the kernel. Applied when the expected log is a recorded
# one: it becomes what Molt has to do. A function returns whether there was anything to change.

def init_answered_positive(log, _actual):
    """Every load whose init answered n > 0 fails with EINVAL, as if init had failed."""
    failed = None
    for index, line in enumerate(log.results):
        loaded = re.match(r"kmt init (\w+)\.ko init_ret=[1-9]\d* .*-> OK", line)
        if loaded:
            failed = loaded[1]
            log.results[index] = line.replace("-> OK", "-> -EINVAL")
        elif failed and re.match(rf"kmt del {failed} .*-> OK", line):
            log.results[index] = line.replace("-> OK", "-> -ENOENT")
    if not failed:
        return False
    log.modules = [line for line in log.modules if not line.startswith(failed + " ")]
    events, gone = [], False
    for line in log.events:
        if gone and (line.startswith(failed + ":") or f" module={failed} " in line):
            continue
        events.append(line)
        if "suspiciously returned" in line:
            events.append(f"om_notify: event GOING module={failed} state=GOING refcount=0 try_get=0")
            gone = True
    log.events = events
    return True


def result_is_shared(log, _actual):
    """Loads of one file at the same time have one result: that of the first, which is the one that
    took longest. It tells how many joined it, after its last event."""
    groups = {}
    for line in log.concurrent:
        if match := re.match(r"[A-Z]: kmt init (\w+)\.ko .*-> (\S+) \((\d+\.\d+)s\)", line):
            groups.setdefault(match[1], []).append((float(match[3]), match[2], line))
    changed = False
    for name, group in groups.items():
        first = max(group)
        others = [member for member in group if member is not first]
        for _, own, line in others:
            log.concurrent[log.concurrent.index(line)] = line.replace(f"-> {own}", f"-> {first[1]}")
        ends = [index for index, line in enumerate(log.events)
                if re.search(rf"event (LIVE|GOING) module={name} ", line)]
        if others and ends:
            log.events.insert(ends[0] + 1,
                              f"{name}: load requests merged with this one: {len(others)}")
            changed = True
    return changed


def counts_below_zero_are_not_compared(expected, actual):
    """The recorded count goes below zero and stays wrong; required/ML-L22.log has the right one."""
    for log in (expected, actual):
        log.events = [line for line in log.events if not re.match(
            r"\w+: (try_module_get=|module_put|reference count)", line)]
        log.attributes, log.modules = [], []
    return True


def forced_out_is_resident(expected, _actual):
    """Whatever was removed by force is told to be resident, after its GOING."""
    forced = [match[1] for line in expected.results
              if (match := re.match(r"kmt del (\w+) 0x[0-9a-f]*[2367abef]00 -> OK", line))]
    for name in forced:
        events = []
        for line in expected.events:
            events.append(line)
            if f" event GOING module={name} " in line:
                events.append(f"{name}: resident")
        expected.events = events
    return bool(forced)


def listener_is_not_the_subject(expected, actual):
    """How om_notify was told to refuse, or put in its place again, is no part of the scenario."""
    for log in (expected, actual):
        log.results = [line for line in log.results
                       if not re.match(r"kmt (init|del) om_notify(\.ko)? .*-> OK", line)]
        log.events = [line for line in log.events if " module=om_notify " not in line]
    return True


def leak_is_resident(expected, _actual):
    """Memory that somebody may still use, to go by the count, stays."""
    gone = [index for index, line in enumerate(expected.events)
            if re.search(r"event GOING module=(\w+) state=GOING refcount=[1-9]", line)]
    for index in reversed(gone):
        name = re.search(r"module=(\w+)", expected.events[index])[1]
        expected.events.insert(index + 1, f"{name}: resident")
    return bool(gone)


def patch_answered_positive(expected, _actual):
    """pre_patch answered n > 0: init fails with EINVAL, and the module is gone."""
    failed = None
    for index, line in enumerate(expected.results):
        loaded = re.match(r"kmt init (\w+)\.ko pre_ret=[1-9]\d* .*-> OK", line)
        if loaded:
            failed = loaded[1]
            expected.results[index] = line.replace("-> OK", "-> -EINVAL")
        elif failed and re.match(rf"kmt del {failed} .*-> OK", line):
            expected.results[index] = line.replace("-> OK", "-> -ENOENT")
    expected.events = [re.sub(r"klp_enable_patch=[1-9]\d*$", "klp_enable_patch=-22", line)
                       for line in expected.events
                       if "suspiciously returned" not in line and "module_exit" not in line]
    return bool(failed)


def reversal_is_over_at_once(expected, _actual):
    """What was seen between the reversal and the next try cannot be seen."""
    expected.attributes = expected.attributes[3:]
    return True


def original_is_no_obstacle(expected, _actual):
    """A thread that sleeps in the original does not hold the way back to it up."""
    line = "ok_target: ok_slow(orig) exit"
    if line not in expected.events:
        return False
    expected.events.remove(line)
    expected.events.insert(next(index for index, event in enumerate(expected.events)
                                if event.endswith("unpatching complete")) + 1, line)
    return True


def forcing_may_be_over(expected, actual):
    """The transition may or may not be over when the attribute is read."""
    if expected.attributes[0] != "1" or actual.attributes[0] not in ("0", "1"):
        return False
    actual.attributes[0] = "1"
    return original_is_no_obstacle(expected, actual)


def order_of_freeing_is_open(expected, actual):
    """free_all goes through a hash table."""
    for log in (expected, actual):
        runs, events = [], []
        for line in [*log.events, ""]:
            if "dtor val=" in line:
                runs.append(line)
            else:
                events += [*sorted(runs), line]
                runs = []
        log.events = events[:-1]
    return True


def only_noted(_expected, _actual):
    return True


# (ids, change, reason)
DIFFERENCES = [
    (("L06b",), leak_is_resident,
     "D1: what is still referenced when init has failed stays in memory until it is not"),
    (("L07",), init_answered_positive,
     "D3: a positive answer of init is an error, EINVAL"),
    (("L14", "L15"), result_is_shared,
     "D8: loads of the same file at the same time share one result"),
    (("L19",), listener_is_not_the_subject,
     "how the listener is told to refuse"),
    (("L22",), counts_below_zero_are_not_compared,
     "D2: a put too many is refused and logged at once; the count stays right"),
    (("L23", "L24"), forced_out_is_resident,
     "D1: a forced unload keeps the memory until it is proven free (MOLT_UNLOAD_RESIDENT)"),
    (("K08b",), patch_answered_positive,
     "D3: a positive answer of pre_patch is an error, EINVAL"),
    (("K13",), reversal_is_over_at_once,
     "D6: a reversal tries to complete at once"),
    (("K15",), only_noted,
     "nobody is woken but by a host that offered to (molt_patch_set_poke)"),
    (("K20",), order_of_freeing_is_open,
     "the order in which free_all() frees is open"),
    (("K21",), forcing_may_be_over,
     "what sleeps in the original does not hold up the way back to it"),
    (("ST-ftrace-1",), only_noted,
     "the switch is host/redirect"),
    (("L10",), only_noted,
     "a module's file is a shared object"),
    (("L20",), only_noted,
     "without privilege: another user, through the control socket"),
    (("L25",), only_noted,
     "modules_disabled: molt_lock_loading()"),
]

# Words of the probe modules about themselves. What an unknown script's probes may say beyond these
# is no behaviour of the loader.
PROBES = r"(om_\w+): "
NARRATION = (r"(event |init enter |init return |exit enter |exit return$|init fn=|init$|exit$"
             r"|try_module_get=|module_put refcount=|kthread)")
LOADER = (r"(Unknown symbol |exports duplicate symbol |version magic |bad vermagic|unknown parameter "
          r"|`.*' invalid for parameter |parameters '|gave up waiting |module license |resident"
          r"|load requests )")


def without_counts(events):
    return [line for line in events
            if not re.match(PROBES + "(try_module_get=|module_put )", line)]


def unknown_narration(line):
    return bool(re.match(PROBES, line)) and not re.match(PROBES + f"({NARRATION}|{LOADER})", line)


# ---- The comparison.

@dataclass
class Verdict:
    same: bool
    reasons: list
    diff: list


def subsequence(short, long):
    rest = iter(long)
    return all(line in rest for line in short)


def compare(scenario, expected, actual, recorded=True):
    """`expected` and `actual` are texts. `recorded`: expected is a log of the kernel, so the
    deliberate differences apply."""
    expected, actual = parse(expected), parse(actual)
    reasons = []
    if recorded:
        for ids, change, reason in DIFFERENCES:
            if scenario in ids and change(expected, actual):
                reasons.append(reason)
    expected, actual = normalised(expected), normalised(actual)
    if recorded and scenario in KEPT_BACK:
        told = [line for line in expected.events if unknown_narration(line)]
        if told:
            expected.events = [line for line in expected.events if line not in told]
            reasons.append("probes said more there: " + "; ".join(told))

    diff = []
    for kind in ("results", "concurrent", "events", "modules", "attributes"):
        want, got = expected.lines(kind), actual.lines(kind)
        if want == got:
            continue
        if recorded and scenario in KEPT_BACK:
            if kind in ("modules", "attributes") and (
                    subsequence(want, got) or subsequence(got, want)):
                reasons.append(f"a script that looks at other {kind}")
                continue
            if kind == "events" and without_counts(want) == without_counts(got):
                reasons.append("a script that takes references in another way")
                continue
        diff += [f"  {line}" for line in
                 difflib.unified_diff(want, got, f"expected {kind}", f"actual {kind}", lineterm="")]
    return Verdict(not diff, reasons, diff)
