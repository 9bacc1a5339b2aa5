// A bare ping-pong over the four hops that a read takes: client -> host -> node -> host -> client.
// Three processes, Unix stream sockets, 64-byte messages, blocking reads, nothing else.
// Prints the median round trip in microseconds. Usage: pingpong [ROUNDS]
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

constexpr size_t MESSAGE_BYTES = 64;

static bool pass(int from, int to) {
  char message[MESSAGE_BYTES];
  size_t got = 0;
  while (got < sizeof message) {
    ssize_t n = read(from, message + got, sizeof message - got);
    if (n <= 0) return false;
    got += static_cast<size_t>(n);
  }
  return write(to, message, sizeof message) == static_cast<ssize_t>(sizeof message);
}

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? atoi(argv[1]) : 2000;
  int client[2], node[2];
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, client) || socketpair(AF_UNIX, SOCK_STREAM, 0, node)) {
    perror("socketpair");
    return 1;
  }
  if (fork() == 0) {  // the node: answers
    close(client[0]), close(client[1]), close(node[0]);
    while (pass(node[1], node[1])) {
    }
    _exit(0);
  }
  if (fork() == 0) {  // the host: forwards there and back
    close(client[0]), close(node[1]);
    while (pass(client[1], node[0]) && pass(node[0], client[1])) {
    }
    _exit(0);
  }
  close(client[1]), close(node[0]), close(node[1]);
  std::vector<double> took;
  for (int round = 0; round < rounds; ++round) {
    char message[MESSAGE_BYTES] = {};
    const auto start = std::chrono::steady_clock::now();
    if (write(client[0], message, sizeof message) != static_cast<ssize_t>(sizeof message)) return 1;
    size_t got = 0;
    while (got < sizeof message) {
      ssize_t n = read(client[0], message + got, sizeof message - got);
      if (n <= 0) return 1;
      got += static_cast<size_t>(n);
    }
    took.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
  }
  close(client[0]);
  while (wait(nullptr) > 0) {
  }
  std::nth_element(took.begin(), took.begin() + took.size() / 2, took.end());
  printf("%.2f\n", took[took.size() / 2]);
  return 0;
}
