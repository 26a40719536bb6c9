// TestClient: a raw HTTP/1.1 client for tests of the server, which can also send what no proper
// client sends. Blocking, with a time limit on every read. Not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace lserve {

struct TestReply {
  int status = 0;  // 0: the server closed the connection without a reply
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;

  // The body as JSON; null if it is none.
  Json json() const;
  // A member of the body's error object, "" if it is null or missing.
  std::string error(const char* field) const;
};

class TestClient {
 public:
  // receive_buffer: bytes of the socket's buffer, 0: the system's default.
  explicit TestClient(uint16_t port, int receive_buffer = 0);
  ~TestClient();
  TestClient(const TestClient&) = delete;
  TestClient& operator=(const TestClient&) = delete;

  bool Send(std::string_view bytes);
  // A request with Host, Content-Length and these further header lines ("Name: value\r\n").
  bool SendRequest(std::string_view method, std::string_view path, std::string_view body = "",
                   std::string_view header_lines = "");
  // A whole reply, chunked or not; `head_only`: a reply without body (HEAD, 204).
  TestReply ReadReply(bool head_only = false);
  // The head of a reply, whose chunks follow.
  TestReply ReadHead();
  // The next chunk's bytes; nothing at the last chunk or when the connection ends.
  std::optional<std::string> ReadChunk();
  // The server has closed the connection (and sent nothing more).
  bool AtEnd();

  void HalfClose();
  void Reset();  // closes with RST
  void Close();

 private:
  bool Fill();  // reads more; false at the end or after the time limit
  std::optional<std::string> ReadLine();

  int socket_ = -1;
  std::string unread_;
};

// One request on a connection of its own.
TestReply Fetch(uint16_t port, std::string_view method, std::string_view path,
                std::string_view body = "", std::string_view header_lines = "");

// The objects of the "data: " lines of a stream, without "[DONE]".
std::vector<Json> StreamObjects(std::string_view stream);

}  // namespace lserve
