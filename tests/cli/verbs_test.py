#!/usr/bin/env python3
"""Every verb against canned replies: what it asks, what it prints, its JSON, its exit code."""
import unittest

from fake import MoltTest

LIMITER = {"name": "limiter", "version": "1.1", "size": 16384, "refcount": 1, "holders": ["audit"],
           "state": "live", "enabled": True, "permanent": False, "taint": "F", "address": "0x0",
           "line": "limiter 16384 1 audit, Live 0x0000000000000000 (F)"}
AUDIT = {"name": "audit", "version": "2", "size": 4096, "refcount": 0, "holders": [],
         "state": "live", "enabled": False, "permanent": True, "taint": "", "address": "0x0",
         "line": "audit 4096 0 [permanent], Live 0x0000000000000000"}
EEXIST = {"errno": "EEXIST", "code": 17, "class": "failed", "message": "limiter: already loaded"}
ENODEV = {"errno": "ENODEV", "code": 19, "class": "refused", "message": "gzip: not for this host"}


class Load(MoltTest):
    def test_load_is_quiet_and_sends_the_file(self):
        reply = {"schema": 1, "name": "limiter", "already": False, "shared": False, "taint": ""}
        process = self.fake({"molt.Load": {"reply": reply}})
        path = self.file("limiter.so", "the content")
        self.quiet("load", "-p", process.pid, path, "limit=5", "text=a b", "--timeout", "1.5")
        request = process.requests()[0]
        self.assertEqual(request["file"], "the content")
        self.assertEqual(request["parameters"],
                         {"path": path, "args": 'limit=5 text="a b"', "timeout_ms": 1500})

    def test_load_again_is_done(self):
        reply = {"schema": 1, "name": "limiter", "already": True, "shared": False, "taint": ""}
        process = self.fake({"molt.Load": {"reply": reply}})
        out = self.output("-v", "load", "-p", process.pid, self.file("limiter.so"))
        self.assertEqual(out, "limiter: already loaded\n")

    def test_load_flags(self):
        reply = {"schema": 1, "name": "limiter", "already": False, "shared": False, "taint": "F"}
        process = self.fake({"molt.Load": {"reply": reply}})
        out = self.output("load", "-p", process.pid, self.file("limiter.so"), "--force", "-n")
        self.assertEqual(out, "limiter: would be loaded\n")
        asked = self.asked(process, "molt.Load")
        self.assertEqual((asked["force"], asked["dry_run"], asked["timeout_ms"]), (True, True, -1))

    def test_load_refused_by_the_process(self):
        process = self.fake({"molt.Load": {"error": EEXIST}})
        path = self.file("limiter.so")
        self.assertEqual(self.complaint("load", "-p", process.pid, path, code=1),
                         "limiter: already loaded")
        self.assertEqual(self.json("load", "-p", process.pid, path, code=1),
                         {"schema": 1, "verb": "load", "pid": int(process.pid), "error": EEXIST})

    def test_load_probe_keeps_what_fits(self):
        loaded = {"schema": 1, "name": "a", "already": False, "shared": False, "taint": ""}
        script = {"molt.Load": [{"reply": loaded}, {"error": ENODEV}, {"reply": loaded}]}
        process = self.fake(script)
        files = [self.file(name) for name in ("a.so", "b.so", "c.so")]
        out = self.output("load", "--probe", "-p", process.pid, *files)
        self.assertEqual(out, "2 loaded, 0 already there, 1 not for this process, 0 failed\n")
        self.assertTrue(all(one["parameters"]["probe"] for one in process.requests()))

    def test_load_probe_partly_failed(self):
        loaded = {"schema": 1, "name": "a", "already": False, "shared": False, "taint": ""}
        process = self.fake({"molt.Load": [{"reply": loaded}, {"error": EEXIST}]})
        files = [self.file(name) for name in ("a.so", "b.so")]
        answer = self.json("load", "--probe", "-p", process.pid, *files, code=7)
        self.assertEqual([answer[key] for key in ("loaded", "already", "declined", "failed")],
                         [1, 0, 0, 1])
        self.assertEqual(answer["results"][0],
                         {"file": files[0], "name": "a", "already": False, "shared": False,
                          "taint": ""})
        self.assertEqual(answer["results"][1], {"file": files[1], "error": EEXIST})


class Unload(MoltTest):
    def test_unload_is_quiet(self):
        reply = {"schema": 1, "name": "limiter", "result": "unmapped", "reason": "", "drain_us": 42}
        process = self.fake({"molt.Unload": {"reply": reply}})
        self.quiet("unload", "limiter", "-p", process.pid, "--timeout", "0")
        self.assertEqual(self.asked(process, "molt.Unload"), {"name": "limiter", "timeout_ms": 0})

    def test_unload_tells_that_memory_stays(self):
        reply = {"schema": 1, "name": "limiter", "result": "pinned", "drain_us": 42,
                 "reason": "a timer points to limiter_tick"}
        process = self.fake({"molt.Unload": {"reply": reply}})
        out, err = self.molt("unload", "limiter", "-p", process.pid)
        self.assertEqual(out, "")
        self.assertEqual(err, "molt: limiter: unloaded, but its memory stays: a timer points to "
                              f"limiter_tick; `molt gc -p {process.pid}` frees it after that\n")
        self.quiet("unload", "limiter", "-q", "-p", process.pid)

    def test_apply_takes_back_in_a_time_of_its_own(self):
        """However little the user gave: threads that have changed over need some to come back."""
        loaded = {"schema": 1, "name": "fix", "already": False, "shared": False, "taint": "K"}
        stalled = {"errno": "ETIMEDOUT", "code": 110, "class": "stalled", "message": "fix: 1 thread has not changed over"}
        script = {"molt.Load": {"reply": loaded}, "molt.Set": {"reply": {"schema": 1}},
                  "molt.Wait": [{"error": stalled}, {"reply": {"schema": 1, "waited_ms": 3}}],
                  "molt.Patches": {"reply": {"schema": 1, "patches": [], "pinned": []}},
                  "molt.Blocking": {"error": {"class": "missing", "errno": "ENOENT", "code": 2, "message": "no module fix"}},
                  "molt.Unload": {"reply": {"schema": 1, "name": "fix", "result": "unmapped", "reason": "", "drain_us": 42}}}
        process = self.fake(script)
        self.assertEqual(self.complaint("apply", "-p", process.pid, self.file("fix.so"), "--timeout", "0.2", code=6),
                         "fix: 1 thread has not changed over; reverted; try again, with a longer --timeout, or --no-wait")
        self.assertEqual([(one["method"], one["parameters"]["timeout_ms"]) for one in process.requests()
                          if "timeout_ms" in one["parameters"]],
                         [("molt.Load", 200), ("molt.Wait", 200), ("molt.Wait", 5000), ("molt.Unload", 5000)])

    def test_revert_tells_that_memory_stays(self):
        patch = {"name": "fix", "enabled": True, "transition": False, "stack_order": 1, "objects": []}
        reply = {"schema": 1, "name": "fix", "result": "resident", "drain_us": 42,
                 "reason": "thread 7 (worker) may return into parse"}
        script = {"molt.Patches": {"reply": {"schema": 1, "patches": [patch], "pinned": []}},
                  "molt.Set": {"reply": {"schema": 1}},
                  "molt.Wait": {"reply": {"schema": 1, "waited_ms": 3}},
                  "molt.List": {"reply": {"schema": 1, "modules": [{"name": "fix", "state": "live"}]}},
                  "molt.Blocking": {"error": {"class": "missing", "errno": "ENOENT", "code": 2,
                                              "message": "no module fix"}},
                  "molt.Unload": {"reply": reply}}
        process = self.fake(script)
        out, err = self.molt("revert", "fix", "-p", process.pid)
        self.assertEqual(out, "")
        self.assertEqual(err, "molt: fix: reverted, but its memory stays: thread 7 (worker) may return "
                              f"into parse; `molt gc -p {process.pid}` frees it after that\n")
        answer = self.json("revert", "fix", "-p", process.pid)
        self.assertEqual((answer["result"], answer["reason"]), ("resident", reply["reason"]))
        self.quiet("revert", "--keep", "fix", "-p", process.pid)
        reply.update(result="unmapped", reason="")
        self.quiet("revert", "fix", "-p", self.fake(script).pid)

    def test_unload_resident(self):
        reply = {"schema": 1, "name": "limiter", "result": "resident", "reason": "", "drain_us": 0}
        process = self.fake({"molt.Unload": {"reply": reply}})
        self.quiet("unload", "--resident", "limiter", "-p", process.pid)
        self.assertTrue(self.asked(process, "molt.Unload")["resident"])

    def test_unload_lazy(self):
        reply = {"schema": 1, "name": "limiter", "result": "resident", "drain_us": 0,
                 "reason": "thread 7 (worker) is in tick+0x10"}
        process = self.fake({"molt.Unload": {"reply": reply}})
        self.quiet("unload", "--lazy", "limiter", "-p", process.pid)
        self.assertTrue(self.asked(process, "molt.Unload")["lazy"])

    def test_blocking(self):
        thread = {"what": "thread", "tid": 7, "thread": "worker", "where": "is in tick+0x10",
                  "function": "tick+0x10", "address": "0x1234", "stack_address": "0x0", "depth": 0,
                  "certain": True, "asleep_ms": 1500, "syscall": "futex"}
        others = {"what": "references", "where": "2 held by others", "certain": True}
        reply = {"schema": 1, "name": "limiter", "state": "live", "reason": "",
                 "holders": [thread, others]}
        process = self.fake({"molt.Blocking": {"reply": reply}})
        self.assertEqual(self.output("blocking", "limiter", "-p", process.pid),
                         "thread 7 (worker) is in tick+0x10, asleep for 1.500 s in futex\n"
                         "references 2 held by others\n")
        self.assertEqual(self.asked(process, "molt.Blocking"), {"name": "limiter"})

    def test_blocking_a_transition(self):
        thread = {"what": "thread", "tid": 7, "thread": "worker", "where": "may return into parse",
                  "function": "parse", "address": "0x1234", "stack_address": "0x0", "depth": 96,
                  "certain": False, "asleep_ms": 1500, "syscall": "futex"}
        transition = {"patch": "fix", "target": "patched", "forced": False, "threads": 9, "done": 8,
                      "left": 1, "tries": 3, "age_ms": 2000}
        reply = {"schema": 1, "name": "fix", "state": "patching", "reason": "",
                 "transition": transition, "holders": [thread]}
        process = self.fake({"molt.Blocking": {"reply": reply}})
        self.assertEqual(self.output("blocking", "-p", process.pid),
                         "thread 7 (worker) may return into parse, asleep for 1.500 s in futex: "
                         "not certain, the word may be stale\n")
        self.assertEqual(self.asked(process, "molt.Blocking"), {})

    def test_gc_every(self):
        process = self.fake({"molt.Set": {"reply": {"schema": 1}},
                             "molt.Gc": {"reply": {"schema": 1, "freed": [], "kept": []}}})
        self.quiet("gc", "--every", "5", "-p", process.pid)
        self.assertEqual(self.asked(process, "molt.Set"),
                         {"path": "host/gc_interval_s", "value": "5"})

    def test_unload_several_goes_on_after_a_failure(self):
        stalled = {"errno": "ETIMEDOUT", "code": 110, "class": "stalled",
                   "message": "limiter: thread 7 is inside; try again"}
        done = {"schema": 1, "name": "audit", "result": "unmapped", "reason": "", "drain_us": 1}
        process = self.fake({"molt.Unload": [{"error": stalled}, {"reply": done}]})
        answer = self.json("unload", "limiter", "audit", "-p", process.pid, code=7)
        self.assertEqual(answer["results"],
                         [{"name": "limiter", "error": stalled},
                          {"name": "audit", "result": "unmapped", "reason": "", "drain_us": 1}])

    def test_unload_stalled(self):
        stalled = {"errno": "ETIMEDOUT", "code": 110, "class": "stalled", "message": "thread 7"}
        process = self.fake({"molt.Unload": {"error": stalled}})
        self.complaint("unload", "limiter", "-p", process.pid, code=6)


class Replace(MoltTest):
    REPLY = {"schema": 1, "name": "limiter", "from": "1.0", "to": "1.1", "state_bytes": 128,
             "pause_us": 35, "old": "unmapped", "reason": ""}

    def test_replace_is_quiet(self):
        process = self.fake({"molt.Replace": {"reply": self.REPLY}})
        path = self.file("limiter.so")
        self.quiet("replace", "-p", process.pid, path)
        self.assertEqual(self.asked(process, "molt.Replace"), {"path": path, "timeout_ms": -1})

    def test_replace_by_name(self):
        process = self.fake({"molt.Replace": {"reply": self.REPLY}})
        path = self.file("new.so")
        out = self.output("replace", "-v", "-p", process.pid, "limiter", path, "limit=1")
        self.assertEqual(out, "limiter: 1.0 -> 1.1, 128 bytes of state, paused 35 us, "
                              "the old one unmapped\n")
        asked = self.asked(process, "molt.Replace")
        self.assertEqual((asked["name"], asked["args"]), ("limiter", "limit=1"))

    def test_replace_json(self):
        process = self.fake({"molt.Replace": {"reply": self.REPLY}})
        answer = self.json("replace", "-p", process.pid, self.file("limiter.so"))
        self.assertEqual(answer, {**self.REPLY, "verb": "replace", "pid": int(process.pid)})


class Show(MoltTest):
    def listing(self):
        stuck = {"name": "limiter", "version": "1.0", "state": "pinned", "size": 8192,
                 "reason": "thread 7 in limiter_wait"}
        return self.fake({"molt.List": {"reply": {"schema": 1, "modules": [LIMITER, AUDIT],
                                                  "resident": [stuck]}}})

    def test_list(self):
        self.assertEqual(self.output("list", "-p", self.listing().pid), (
            "Module    Size  Refcnt  Used by      State     Taint\n"
            "limiter  16384       1  audit        live      F\n"
            "audit     4096       0  [permanent]  disabled  -\n"
            "\n"
            "Unloaded     Size  State   Why\n"
            "limiter 1.0  8192  pinned  thread 7 in limiter_wait\n"))

    def test_list_proc(self):
        self.assertEqual(self.output("list", "--proc", "-p", self.listing().pid),
                         LIMITER["line"] + "\n" + AUDIT["line"] + "\n")

    def test_list_json(self):
        process = self.listing()
        answer = self.json("list", "-p", process.pid)
        self.assertEqual((answer["schema"], answer["verb"], answer["pid"]),
                         (1, "list", int(process.pid)))
        self.assertEqual(answer["modules"], [LIMITER, AUDIT])

    def test_info(self):
        reply = {**LIMITER, "schema": 1, "description": "limits opens", "license": "MIT",
                 "srcversion": "ab12", "path": "/lib/limiter.so", "store": "", "state_version": 1,
                 "parameters": [{"name": "limit", "type": "int", "value": "5", "writable": True,
                                 "description": "opens per client"}],
                 "callbacks": [{"hook": "files.open", "order": "first"}], "exports": ["count"],
                 "imports": [{"name": "clock", "module": "audit"}],
                 "requests": {"loads": 2, "joined": 1, "pid": 9, "uid": 0, "comm": "molt"},
                 "hazards": ["STB_GNU_UNIQUE x"], "exceptions": 3}
        process = self.fake({"molt.Info": {"reply": reply}})
        out = self.output("info", "limiter", "-p", process.pid)
        self.assertEqual(self.asked(process, "molt.Info"), {"name": "limiter"})
        for line in ("name:           limiter", "version:        1.1", "state:          live",
                     "parm:           limit:opens per client (int) = 5 [writable]",
                     "hook:           files.open (first)", "import:         clock from audit",
                     "hazard:         STB_GNU_UNIQUE x", "exceptions:     3"):
            self.assertIn(line + "\n", out)

    def test_info_of_no_module(self):
        missing = {"errno": "ENOENT", "code": 2, "class": "missing", "message": "no module 'x'"}
        process = self.fake({"molt.Info": {"error": missing}})
        self.complaint("info", "x", "-p", process.pid, code=3)

    def test_control_characters_do_not_reach_the_terminal(self):
        process = self.fake({"molt.Get": {"reply": {"schema": 1, "value": "\x1b[2Ja\nb"}}})
        self.assertEqual(self.output("get", "host/name", "-p", process.pid), "\\x1b[2Ja b\n")


class Hooks(MoltTest):
    def test_hook_list(self):
        hook = {"name": "files.open", "signature": "i32(const char*,i32)", "fingerprint": "1f",
                "rule": "first", "on_exception": "open", "description": "before a file is opened",
                "callbacks": [{"module": "limiter", "order": 0}, {"module": "audit", "order": 1}],
                "order": ["limiter"]}
        process = self.fake({"molt.HookList": {"reply": {"schema": 1, "hooks": [hook]}}})
        self.assertEqual(self.output("hook", "list", "-p", process.pid), (
            "Hook        Rule   Callbacks      Signature\n"
            "files.open  first  limiter,audit  i32(const char*,i32)\n"))
        self.assertIn("order:          limiter\n", self.output("hook", "list", "-vp", process.pid))
        self.assertEqual(self.json("hook", "list", "-p", process.pid)["hooks"], [hook])

    def order(self, *arguments):
        reply = {"schema": 1, "hook": "files.open", "order": []}
        process = self.fake({"molt.HookOrder": {"reply": reply}})
        self.quiet("hook", "order", "-p", process.pid, *arguments)
        return self.asked(process, "molt.HookOrder")

    def test_hook_order(self):
        self.assertEqual(self.order("files.open", "b,a"),
                         {"hook": "files.open", "modules": ["b", "a"]})

    def test_hook_order_of_all_hooks(self):
        self.assertEqual(self.order("--all-hooks", "b,a"), {"modules": ["b", "a"]})

    def test_hook_order_reset(self):
        self.assertEqual(self.order("files.open", "--reset"),
                         {"hook": "files.open", "modules": None})


class Objects(MoltTest):
    def test_get(self):
        process = self.fake({"molt.Get": {"reply": {"schema": 1, "value": "4"}}})
        self.assertEqual(self.output("get", "modules/limiter/refcnt", "-p", process.pid), "4\n")
        self.assertEqual(self.asked(process, "molt.Get"), {"path": "modules/limiter/refcnt"})

    def test_set(self):
        process = self.fake({"molt.Set": {"reply": {"schema": 1}}})
        self.quiet("set", "-p", process.pid, "modules/limiter/parameters/limit", "--", "-5")
        self.assertEqual(self.asked(process, "molt.Set"),
                         {"path": "modules/limiter/parameters/limit", "value": "-5"})

    def test_set_has_no_dry_run(self):
        process = self.fake({})
        self.complaint("set", "-n", "-p", process.pid, "host/delay_release_ms", "5", code=2)
        self.assertEqual(process.requests(), [])

    def test_tree(self):
        nodes = [{"path": "modules", "kind": "object", "mode": "0555"},
                 {"path": "modules/audit", "kind": "object", "mode": "0555"},
                 {"path": "modules/audit/refcnt", "kind": "attribute", "mode": "0444", "value": "0"},
                 {"path": "modules/limiter", "kind": "object", "mode": "0555"},
                 {"path": "modules/limiter/holders", "kind": "object", "mode": "0555"},
                 {"path": "modules/limiter/holders/audit", "kind": "link", "mode": "0777",
                  "target": "modules/audit"}]
        process = self.fake({"molt.Tree": {"reply": {"schema": 1, "nodes": nodes}}})
        self.assertEqual(self.output("tree", "modules", "-p", process.pid), (
            "modules/\n"
            "  audit/\n"
            "    refcnt = 0\n"
            "  limiter/\n"
            "    holders/\n"
            "      audit -> modules/audit\n"))
        self.assertEqual(self.asked(process, "molt.Tree"), {"path": "modules"})


class Events(MoltTest):
    FIRST = {"seq": 7, "time_ms": 1700000000123, "module": "limiter", "text": "limiter: loaded",
             "pid": 9, "uid": 0}
    SECOND = {"seq": 8, "time_ms": 1700000001000, "module": "", "text": "locked", "pid": 0, "uid": 0}

    def test_events(self):
        reply = {"schema": 1, "events": [self.FIRST, self.SECOND], "next": 9, "lost": 2}
        process = self.fake({"molt.Events": {"reply": reply}})
        self.assertEqual(self.output("events", "-v", "--since", "5", "-p", process.pid), (
            "(2 events are lost: the log is a ring, and these were overwritten)\n"
            "[2023-11-14 22:13:20.123] limiter: loaded (asked by pid 9, uid 0)\n"
            "[2023-11-14 22:13:21.000] locked\n"))
        self.assertEqual(self.asked(process, "molt.Events"), {"since": 5})

    def test_events_name_functions_as_the_source_does(self):
        event = dict(self.SECOND, text="thr: thread 7 (thr) may return into _ZL3runPv+0x1f")
        reply = {"schema": 1, "events": [event], "next": 9, "lost": 0}
        process = self.fake({"molt.Events": {"reply": reply}})
        self.assertIn("may return into run(void*)+0x1f\n", self.output("events", "-p", process.pid))

    def test_events_follow_until_the_process_ends(self):
        stream = [{"schema": 1, "events": [self.FIRST], "next": 8, "lost": 0},
                  {"schema": 1, "events": [self.SECOND], "next": 9, "lost": 0}]
        process = self.fake({"molt.Events": {"stream": stream}})
        out, err = self.molt("events", "-f", "-p", process.pid, code=1)
        self.assertEqual(out, "[2023-11-14 22:13:20.123] limiter: loaded\n"
                              "[2023-11-14 22:13:21.000] locked\n")
        self.assertIn("closed the connection", err)
        self.assertEqual(self.asked(process, "molt.Events"), {"more": True})


class Rest(MoltTest):
    def test_gc(self):
        reply = {"schema": 1, "freed": ["audit"], "kept": [{"name": "limiter", "reason": "thread 7"}]}
        process = self.fake({"molt.Gc": {"reply": reply}})
        self.assertEqual(self.output("gc", "-n", "-p", process.pid),
                         "audit: would be freed\nlimiter: kept: thread 7\n")
        self.assertEqual(self.asked(process, "molt.Gc"), {"dry_run": True})

    def test_wait(self):
        process = self.fake({"molt.Wait": {"reply": {"schema": 1, "waited_ms": 3}}})
        self.quiet("wait", "limiter", "--for", "freed", "-p", process.pid)
        self.assertEqual(self.asked(process, "molt.Wait"),
                         {"name": "limiter", "for": "freed", "timeout_ms": -1})

    def test_wait_for_what_is_unknown(self):
        process = self.fake({})
        self.complaint("wait", "limiter", "--for", "good", "-p", process.pid, code=2)

    def test_version(self):
        self.assertRegex(self.output("version"), r"^molt \d+\.\d+\.\d+ ")
        self.assertEqual(self.json("version")["schema"], 1)


if __name__ == "__main__":
    unittest.main()
