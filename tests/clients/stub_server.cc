// A server over a stub model, for tests with real clients: prints its port, serves until its
// standard input ends. Every answer is the first argument.
#include <cstdio>
#include <iostream>
#include <string>

#include "server/testing/test_server.h"

int main(int argc, char** argv) {
  lserve::TestServerOptions options;
  options.answer = argc > 1 ? argv[1] : "The code is 4711 👋🏽.";
  options.stub.step_seconds = 0.002;
  options.server.keep_alive_seconds = 0.001;  // so that clients meet comments
  options.server.api_keys = {"secret"};
  lserve::TestServer server(options);
  std::printf("%d\n", static_cast<int>(server.port()));
  std::fflush(stdout);
  for (std::string line; std::getline(std::cin, line);) {
  }
  return 0;
}
