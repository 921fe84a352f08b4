"""How each package of the field test is built, started, put under load, and asked whether it works.

Every server listens on loopback, in a folder of its own, and is ended by its pid.
"""

import http.client
import os
import pathlib
import shutil
import socket
import subprocess
import threading
import time


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until_open(port, process):
    for _ in range(1000):
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            if process.poll() is not None:
                raise RuntimeError(f"the program ended with {process.returncode}") from None
            time.sleep(0.01)
    raise RuntimeError("the program does not listen")


class Load:
    """Threads that ask without a pause, and count what fails."""

    def __init__(self, ask, threads=2):
        self.ask = ask
        self.done = 0
        self.failures = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self):
        state = {}
        while not self._stop.is_set():
            try:
                self.ask(state)
                self.done += 1
            except Exception as error:  # noqa: BLE001  what failed is the finding
                self.failures.append(repr(error))
                state.clear()
                if len(self.failures) > 100:
                    return


class Package:
    name = ""
    source = ""  # the source package, if it is of another name
    configure = None  # a command, run where there is no `configured` file
    configured = ""
    build = ()
    targets = ()  # in the tree; the first is the program

    def __init__(self, built, scratch):
        self.built = pathlib.Path(built)
        self.scratch = pathlib.Path(scratch)
        self.process = None
        self.port = 0

    def prepare(self, tree):
        """Changes what the row wants otherwise than Debian has it, before anything is built."""

    def symbols(self, target):
        """The file of the build with the target's symbols."""
        return self.built / target

    def whole(self):
        """Builds the program, after anything may have changed."""
        return self.command()

    def command(self):
        """What `molt build` is told."""
        if not self.configure:
            return list(self.build)
        return ["sh", "-c", f"test -e {self.configured} || {{ {self.configure}; }} && {' '.join(self.build)}"]

    def start(self):
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True)
        self.port = free_port()
        log = open(self.scratch / "log", "w", encoding="utf-8")  # noqa: SIM115  the process keeps it
        self.process = subprocess.Popen(
            self.arguments(), cwd=self.scratch, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment()
        )
        log.close()
        wait_until_open(self.port, self.process)

    def environment(self):
        return dict(os.environ, MOLT_DIRECTORY=str(self.scratch.parents[1] / "control"))

    def pids(self):
        return [self.process.pid]

    def stop(self):
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def arguments(self):
        raise NotImplementedError

    def ask(self, state):
        raise NotImplementedError

    def test(self, tree):
        """Runs what can be run of the package's tests. "" or what failed."""
        raise NotImplementedError


class Redis(Package):
    name = "redis"
    build = ("debian/rules", "override_dh_auto_build")
    targets = ("src/redis-server",)
    suites = ("unit/type/string", "unit/type/set", "unit/scripting", "unit/acl", "unit/bitops")

    def whole(self):
        # What is in deps/ its Makefile builds once, with the settings, and links whatever is there.
        changed = "test -e src/redis-server && find deps -name '*.[ch]' -newer src/redis-server | grep -q ."
        return ["sh", "-c", f"if {changed}; then rm -f src/.make-*; fi; exec {' '.join(self.build)}"]

    def arguments(self):
        server = self.built / self.targets[0]
        return [str(server), "--port", str(self.port), "--save", "", "--bind", "127.0.0.1", "--enable-debug-command", "yes"]

    def ask(self, state):
        if "socket" not in state:
            state["socket"] = socket.create_connection(("127.0.0.1", self.port), timeout=10)
            state["file"] = state["socket"].makefile("rwb")
        file = state["file"]
        script = b"return redis.call('incr', KEYS[1])"
        file.write(b"*4\r\n$4\r\nEVAL\r\n$%d\r\n%s\r\n$1\r\n1\r\n$1\r\nk\r\n" % (len(script), script))
        file.write(b"*3\r\n$3\r\nSET\r\n$3\r\nfoo\r\n$3\r\nbar\r\n*2\r\n$3\r\nGET\r\n$3\r\nfoo\r\n")
        file.flush()
        answers = [file.readline() for _ in range(4)]
        if not answers[0].startswith(b":") or answers[1] != b"+OK\r\n" or answers[3] != b"bar\r\n":
            raise RuntimeError(f"answered {answers}")

    def test(self, tree):
        failed = []
        for suite in self.suites[:2]:
            done = subprocess.run(
                ["./runtest", "--host", "127.0.0.1", "--port", str(self.port), "--single", suite, "--tags", "-needs:repl -needs:debug"],
                cwd=tree, capture_output=True, text=True, timeout=300, check=False,
            )  # fmt: skip
            if done.returncode != 0:
                failed.append(f"{suite}: {[line for line in done.stdout.splitlines() if 'err' in line.lower()][:1]}")
        return "; ".join(failed)


class Memcached(Package):
    """As dpkg-buildpackage makes it: the program that runs is stripped."""

    name = "memcached"
    build = ("dpkg-buildpackage", "-b", "-nc", "-us", "-uc", "-d")
    targets = ("debian/memcached/usr/bin/memcached",)

    def whole(self):
        return [word for word in self.build if word != "-nc"]

    def symbols(self, target):
        return self.built / "memcached"

    def arguments(self):
        user = ["-u", "root"] if os.getuid() == 0 else []
        return [str(self.built / self.targets[0]), "-l", "127.0.0.1", "-p", str(self.port), "-U", "0", "-t", "4", *user]

    def ask(self, state):
        if "socket" not in state:
            state["socket"] = socket.create_connection(("127.0.0.1", self.port), timeout=10)
            state["file"] = state["socket"].makefile("rwb")
        file = state["file"]
        file.write(b"set key 0 0 5\r\nvalue\r\nget key\r\nmg key v\r\n")
        file.flush()
        answers = [file.readline() for _ in range(6)]
        if answers[0] != b"STORED\r\n" or answers[2] != b"value\r\n" or answers[5] != b"value\r\n":
            raise RuntimeError(f"answered {answers}")

    def test(self, tree):
        environment = dict(os.environ, T_MEMD_USE_DAEMON=f"127.0.0.1:{self.port}")
        tests = [t for t in ("t/cas.t", "t/incrdecr.t", "t/getset.t", "t/metaget.t", "t/touch.t") if (pathlib.Path(tree) / t).exists()]
        done = subprocess.run(
            ["prove", "-It/lib", "-I.", *tests],
            cwd=self.built, env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        return "" if done.returncode == 0 else done.stdout.strip().splitlines()[-1]


PROXY_CONFIG = """
function mcp_config_pools(old)
  return mcp.pool({{ mcp.backend('one', '127.0.0.1', '{port}') }})
end
function mcp_config_routes(pool)
  mcp.attach(mcp.CMD_ANY_STORAGE, function(request) return pool(request) end)
end
"""


class MemcachedProxy(Memcached):
    """What Debian leaves out and its patches are about: the proxy and the password database. It runs as a
    proxy before a memcached of the same build."""

    name = "memcached-proxy"
    source = "memcached"

    def prepare(self, tree):
        rules = pathlib.Path(tree) / "debian/rules"
        rules.write_text(rules.read_text().replace("--enable-sasl ", "--enable-sasl --enable-sasl-pwdb --enable-proxy "))

    def start(self):
        self.behind = free_port()
        program = str(self.built / self.targets[0])
        user = ["-u", "root"] if os.getuid() == 0 else []
        self.backend = subprocess.Popen([program, "-l", "127.0.0.1", "-p", str(self.behind), "-U", "0", *user])
        try:
            wait_until_open(self.behind, self.backend)
            super().start()
        except BaseException:
            self.stop()
            raise

    def arguments(self):
        config = self.scratch / "proxy.lua"
        config.write_text(PROXY_CONFIG.format(port=self.behind))
        return [*super().arguments(), "-o", f"proxy_config={config}"]

    def ask(self, state):
        # One request at a time: this proxy loses answers of several at once now and then, patched or not.
        if "socket" not in state:
            state["socket"] = socket.create_connection(("127.0.0.1", self.port), timeout=10)
            state["file"] = state["socket"].makefile("rwb")
        file = state["file"]
        for request, wanted in (
            (b"set key 0 0 5\r\nvalue\r\n", [b"STORED\r\n"]),
            (b"get key\r\n", [b"VALUE key 0 5\r\n", b"value\r\n", b"END\r\n"]),
            (b"mg key v\r\n", [b"VA 5\r\n", b"value\r\n"]),
        ):
            file.write(request)
            file.flush()
            answers = [file.readline() for _ in wanted]
            if answers != wanted:
                raise RuntimeError(f"answered {answers}")

    def test(self, tree):
        del tree
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            file = connection.makefile("rwb")
            failed = []
            for request, wanted in (
                (b"set a 0 0 1\r\n1\r\n", [b"STORED"]),
                (b"incr a 5\r\n", [b"6"]),
                (b"set b 0 0 1\r\n2\r\n", [b"STORED"]),
                (b"get a b\r\n", [b"VALUE a 0 1", b"6", b"VALUE b 0 1", b"2", b"END"]),
                (b"mg a s v\r\n", [b"VA 1 s1", b"6"]),
                (b"delete a\r\n", [b"DELETED"]),
                (b"get a\r\n", [b"END"]),
            ):
                file.write(request)
                file.flush()
                answers = [file.readline().strip() for _ in wanted]
                if answers != wanted:
                    failed.append(f"{request}: {answers}")
        return "; ".join(failed)

    def stop(self):
        super().stop()
        self.backend.terminate()
        self.backend.wait(20)


NGINX_CONFIGURE = """
./configure --prefix=/usr/share/nginx --error-log-path=stderr --modules-path=/usr/lib/nginx/modules
--with-cc-opt="$(dpkg-buildflags --get CFLAGS) -fPIC $(dpkg-buildflags --get CPPFLAGS)"
--with-ld-opt="$(dpkg-buildflags --get LDFLAGS) -fPIC"
--with-compat --with-debug --with-pcre-jit --with-http_ssl_module --with-http_stub_status_module
--with-http_realip_module --with-http_auth_request_module --with-http_v2_module --with-http_dav_module
--with-http_slice_module --with-threads --with-http_addition_module --with-http_flv_module
--with-http_gunzip_module --with-http_gzip_static_module --with-http_mp4_module
--with-http_random_index_module --with-http_secure_link_module --with-http_sub_module
--with-mail_ssl_module --with-stream_ssl_module --with-stream_ssl_preread_module
--with-stream_realip_module --with-mail=dynamic --with-stream=dynamic
""".replace("\n", " ")


class Nginx(Package):
    name = "nginx"
    configure = NGINX_CONFIGURE
    configured = "Makefile"
    build = ("make", "build")
    targets = ("objs/nginx", "objs/ngx_mail_module.so", "objs/ngx_stream_module.so")

    CONFIG = """
daemon off; {user} pid {scratch}/pid; error_log {scratch}/error.log info; worker_processes 1;
load_module {built}/objs/ngx_mail_module.so;
load_module {built}/objs/ngx_stream_module.so;
events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path {scratch}/body; proxy_temp_path {scratch}/proxy;
  fastcgi_temp_path {scratch}/f; uwsgi_temp_path {scratch}/u; scgi_temp_path {scratch}/s;
  server {{
    listen 127.0.0.1:{port};
    location / {{ root {scratch}/www; dav_methods PUT DELETE COPY MOVE; create_full_put_path on; }}
    location /proxy/ {{ proxy_pass http://127.0.0.1:{port}/; }}
    location /video/ {{ root {scratch}/www; mp4; }}
    location /sub {{ sub_filter a b; root {scratch}/www; }}
  }}
}}
stream {{ server {{ listen 127.0.0.1:{stream}; proxy_pass 127.0.0.1:{port}; }} }}
mail {{ server {{ listen 127.0.0.1:{mail}; protocol smtp; smtp_auth none; auth_http 127.0.0.1:{port}/auth; server_name x; }} }}
"""

    def arguments(self):
        self.stream = free_port()
        www = self.scratch / "www"
        www.mkdir()
        (www / "index.html").write_text("hello\n")
        config = self.scratch / "nginx.conf"
        config.write_text(
            self.CONFIG.format(user="user root;" if os.getuid() == 0 else "", scratch=self.scratch, built=self.built, port=self.port, stream=self.stream, mail=free_port())
        )
        return [str(self.built / "objs/nginx"), "-c", str(config), "-p", str(self.scratch)]

    def pids(self):
        path = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
        for _ in range(500):
            workers = [int(pid) for pid in pathlib.Path(path).read_text().split()]
            if workers:
                return [self.process.pid, *workers]
            time.sleep(0.01)
        return [self.process.pid]

    def ask(self, state):
        if "connection" not in state:
            state["connection"] = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection = state["connection"]
        for path in ("/index.html", "/proxy/index.html"):
            connection.request("GET", path)
            answer = connection.getresponse()
            if answer.status != 200 or answer.read() != b"hello\n":
                raise RuntimeError(f"{path} answered {answer.status}")

    def test(self, tree):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        stream = http.client.HTTPConnection("127.0.0.1", self.stream, timeout=10)
        wanted = (
            (connection, "PUT", "/a/b.txt", b"x", {}, 201),
            (connection, "GET", "/a/b.txt", None, {}, 200),
            (connection, "COPY", "/a/b.txt", None, {"Destination": "/a/c.txt"}, 204),
            (connection, "MOVE", "/a/c.txt", None, {"Destination": "/a/d.txt"}, 204),
            (connection, "DELETE", "/a/d.txt", None, {}, 204),
            (connection, "GET", "/none", None, {}, 404),
            (connection, "GET", "/index.html", None, {"Range": "bytes=1-2"}, 206),
            (stream, "GET", "/index.html", None, {}, 200),
        )
        failed = []
        for via, method, path, body, headers, status in wanted:
            via.request(method, path, body, headers)
            answer = via.getresponse()
            answer.read()
            if answer.status != status:
                failed.append(f"{method} {path}: {answer.status} instead of {status}")
        return "; ".join(failed)


CURL_HOST = r"""
#include <curl/curl.h>
#include <stdio.h>
#include <string.h>
/* Reads one URL a line, fetches it, and says how that went. */
static size_t take(char *bytes, size_t size, size_t count, void *sum) {
  (void)bytes;
  *(size_t *)sum += size * count;
  return size * count;
}
int main(void) {
  char line[1024];
  curl_global_init(CURL_GLOBAL_ALL);
  CURL *easy = curl_easy_init();
  setvbuf(stdout, NULL, _IOLBF, 0);
  puts("ready");
  while (fgets(line, sizeof line, stdin)) {
    size_t sum = 0;
    line[strcspn(line, "\n")] = 0;
    curl_easy_setopt(easy, CURLOPT_URL, line);
    curl_easy_setopt(easy, CURLOPT_COOKIEFILE, "");
    curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 1L);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, take);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, &sum);
    CURLcode code = curl_easy_perform(easy);
    printf("%d %zu\n", (int)code, sum);
  }
  curl_easy_cleanup(easy);
  curl_global_cleanup();
  return 0;
}
"""


class Curl(Package):
    """libcurl, the OpenSSL flavour, in a small program of ours that fetches from a server of ours."""

    name = "curl"
    configure = (
        "autoreconf -fi && dh_auto_configure -- --disable-symbol-hiding --enable-versioned-symbols "
        "--enable-threaded-resolver --with-lber-lib=lber --with-gssapi=/usr --with-nghttp2 --without-libssh "
        "--with-libssh2 --with-openssl --with-ca-path=/etc/ssl/certs "
        "--disable-static --enable-dependency-tracking"
    )
    configured = "config.status"
    build = ("make", "-C", "lib")
    targets = ("lib/.libs/libcurl.so.4",)

    def start(self):
        import http.server

        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True)
        (self.scratch / "host.c").write_text(CURL_HOST)
        (self.scratch / "www").mkdir()
        (self.scratch / "www" / "file").write_bytes(b"x" * 5000)
        library = self.built / "lib/.libs"
        subprocess.run(
            ["gcc", "-g", "-O2", f"-I{self.built}/include", "-o", "host", "host.c", f"-L{library}", "-lcurl"],
            cwd=self.scratch, check=True,
        )  # fmt: skip
        directory = str(self.scratch / "www")

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *arguments, **words):
                super().__init__(*arguments, directory=directory, **words)

            def do_GET(self):
                if self.path == "/moved":
                    self.send_response(302)
                    self.send_header("Location", "/file")
                    self.send_header("Set-Cookie", "a=b; path=/")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                else:
                    super().do_GET()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.lock = threading.Lock()
        self.process = subprocess.Popen(
            ["./host"], cwd=self.scratch, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            env=dict(self.environment(), LD_LIBRARY_PATH=str(library)),
        )  # fmt: skip
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError("the host program does not start")

    def fetch(self, path):
        with self.lock:
            self.process.stdin.write(f"http://127.0.0.1:{self.port}{path}\n")
            return self.process.stdout.readline().split()

    def ask(self, state):
        del state
        answer = self.fetch("/file")
        if answer != ["0", "5000"]:
            raise RuntimeError(f"fetching answered {answer}")

    def test(self, tree):
        del tree
        failed = []
        for path, wanted in (("/moved", ["0", "5000"]), ("/file", ["0", "5000"])):
            answer = self.fetch(path)
            if answer != wanted:
                failed.append(f"{path}: {answer}")
        return "; ".join(failed)

    def stop(self):
        if self.process is not None:
            self.process.stdin.close()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process.stdout.close()
            self.process = None
        self.server.shutdown()
        self.server.server_close()


PACKAGES = {package.name: package for package in (Redis, Memcached, MemcachedProxy, Nginx, Curl)}
