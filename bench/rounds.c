/* rounds ROUNDS REQUESTS REQUEST PORT PORT: asks two servers in turn, so many REQUESTS each time, and prints
   for each round how long a request took of the one and of the other, in ns.

   The rounds are short (some ms), and each other one is in the opposite order: what disturbs the machine
   disturbs both alike. wrk and redis-benchmark need a second for each figure; in that time a busy machine
   changes by more than what is looked for. In REQUEST \r and \n stand for these characters. */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { connections = 20 };
static char request[1000];
static size_t request_bytes;

struct server {
  int epoll;
  int sockets[connections];
};

static void die(const char* what) {
  perror(what);
  exit(1);
}

static void ask(int socket) {
  if (send(socket, request, request_bytes, MSG_NOSIGNAL) != (ssize_t)request_bytes) die("send");
}

static void open_connections(struct server* server, int port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  server->epoll = epoll_create1(0);
  for (int i = 0; i < connections; ++i) {
    const int s = server->sockets[i] = socket(AF_INET, SOCK_STREAM, 0);
    const int yes = 1;
    struct epoll_event event = {.events = EPOLLIN, .data.fd = s};
    if (s < 0 || connect(s, (struct sockaddr*)&address, sizeof address) != 0) die("connect");
    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (epoll_ctl(server->epoll, EPOLL_CTL_ADD, s, &event) != 0) die("epoll");
  }
}

/* One request on each connection at any time. An answer is one segment. */
static double ns_per_request(struct server* server, int count) {
  struct timespec begin, end;
  char answer[8192];
  struct epoll_event events[connections];
  clock_gettime(CLOCK_MONOTONIC, &begin);
  int asked = 0, answered = 0;
  while (asked < connections && asked < count) ask(server->sockets[asked++]);
  while (answered < count) {
    const int ready = epoll_wait(server->epoll, events, connections, 10000);
    if (ready <= 0) die("no answer");
    for (int i = 0; i < ready; ++i) {
      if (recv(events[i].data.fd, answer, sizeof answer, 0) <= 0) die("recv");
      ++answered;
      if (asked < count) ++asked, ask(events[i].data.fd);
    }
  }
  clock_gettime(CLOCK_MONOTONIC, &end);
  return ((double)(end.tv_sec - begin.tv_sec) * 1e9 + (double)(end.tv_nsec - begin.tv_nsec)) /
         count;
}

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  const int rounds = atoi(argv[1]), count = atoi(argv[2]);
  for (const char* c = argv[3]; *c != '\0' && request_bytes < sizeof request; ++c) {
    const int escaped = c[0] == '\\' && (c[1] == 'r' || c[1] == 'n');
    request[request_bytes++] = escaped ? (*++c == 'r' ? '\r' : '\n') : *c;
  }
  struct server servers[2];
  for (int i = 0; i < 2; ++i) {
    open_connections(&servers[i], atoi(argv[4 + i]));
    ns_per_request(&servers[i], 10 * connections);
  }
  for (int round = 0; round < rounds; ++round) {
    double ns[2];
    for (int turn = 0; turn < 2; ++turn) {
      const int i = (round + turn) % 2;
      ns_per_request(&servers[i], 2 * connections); /* its caches come back */
      ns[i] = ns_per_request(&servers[i], count);
    }
    printf("%.0f %.0f\n", ns[0], ns[1]);
  }
  return 0;
}
