#include "server/testing/test_client.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>

#include "base/check.h"

namespace lserve {
namespace {

constexpr int kReadSeconds = 30;  // beyond it a test fails instead of hanging

}  // namespace

Json TestReply::json() const { return Json::parse(body, nullptr, false); }

std::string TestReply::error(const char* field) const {
  const Json parsed = json();
  const Json* error = FindKey(parsed, "error");
  const Json* value = error == nullptr ? nullptr : FindKey(*error, field);
  return value != nullptr && value->is_string() ? value->get<std::string>() : "";
}

TestClient::TestClient(uint16_t port, int receive_buffer) {
  socket_ = ::socket(AF_INET, SOCK_STREAM, 0);
  CHECK(socket_ >= 0);
  if (receive_buffer > 0) {
    ::setsockopt(socket_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
  }
  const timeval limit{kReadSeconds, 0};
  ::setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  ::setsockopt(socket_, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
  const int no_delay = 1;
  ::setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &no_delay, sizeof(no_delay));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  CHECK(::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
}

TestClient::~TestClient() { Close(); }

void TestClient::Close() {
  if (socket_ >= 0) {
    ::close(socket_);
    socket_ = -1;
  }
}

void TestClient::HalfClose() { ::shutdown(socket_, SHUT_WR); }

void TestClient::Reset() {
  const linger hard{1, 0};
  ::setsockopt(socket_, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
  Close();
}

bool TestClient::Send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) {
      return false;
    }
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
  return true;
}

bool TestClient::SendRequest(std::string_view method, std::string_view path, std::string_view body,
                             std::string_view header_lines) {
  return Send(fmt::format("{} {} HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n{}\r\n{}", method,
                          path, body.size(), header_lines, body));
}

bool TestClient::Fill() {
  char bytes[16384];
  const ssize_t got = ::recv(socket_, bytes, sizeof(bytes), 0);
  if (got <= 0) {
    return false;
  }
  unread_.append(bytes, static_cast<size_t>(got));
  return true;
}

std::optional<std::string> TestClient::ReadLine() {
  size_t end = 0;
  while ((end = unread_.find("\r\n")) == std::string::npos) {
    if (!Fill()) {
      return std::nullopt;
    }
  }
  std::string line = unread_.substr(0, end);
  unread_.erase(0, end + 2);
  return line;
}

TestReply TestClient::ReadHead() {
  TestReply reply;
  std::optional<std::string> line = ReadLine();
  if (!line.has_value() || line->size() < 12) {
    return reply;
  }
  reply.status = std::stoi(line->substr(9, 3));
  while ((line = ReadLine()).has_value() && !line->empty()) {
    const size_t colon = line->find(": ");
    std::string name = line->substr(0, colon);
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    reply.headers[name] = line->substr(colon + 2);
  }
  if (reply.status == 100) {
    return ReadHead();
  }
  return reply;
}

std::optional<std::string> TestClient::ReadChunk() {
  const std::optional<std::string> size_line = ReadLine();
  if (!size_line.has_value()) {
    return std::nullopt;
  }
  const size_t size = std::stoul(*size_line, nullptr, 16);
  while (unread_.size() < size + 2) {
    if (!Fill()) {
      return std::nullopt;
    }
  }
  std::string chunk = unread_.substr(0, size);
  CHECK(unread_.substr(size, 2) == "\r\n");
  unread_.erase(0, size + 2);
  if (size == 0) {
    return std::nullopt;
  }
  return chunk;
}

TestReply TestClient::ReadReply(bool head_only) {
  TestReply reply = ReadHead();
  if (reply.status == 0 || head_only) {
    return reply;
  }
  if (const auto length = reply.headers.find("content-length"); length != reply.headers.end()) {
    const size_t size = std::stoul(length->second);
    while (unread_.size() < size && Fill()) {
    }
    reply.body = unread_.substr(0, size);
    unread_.erase(0, size);
  } else if (reply.headers.contains("transfer-encoding")) {
    while (std::optional<std::string> chunk = ReadChunk()) {
      reply.body += *chunk;
    }
  } else {
    while (Fill()) {
    }
    reply.body = std::exchange(unread_, {});
  }
  return reply;
}

bool TestClient::AtEnd() { return unread_.empty() && !Fill(); }

TestReply Fetch(uint16_t port, std::string_view method, std::string_view path,
                std::string_view body, std::string_view header_lines) {
  TestClient client(port);
  client.SendRequest(method, path, body, header_lines);
  return client.ReadReply(method == "HEAD");
}

std::vector<Json> StreamObjects(std::string_view stream) {
  std::vector<Json> objects;
  while (!stream.empty()) {
    const size_t end = stream.find("\n\n");
    const std::string_view event = stream.substr(0, end);
    if (event.starts_with("data: ") && event != "data: [DONE]") {
      objects.push_back(Json::parse(event.substr(6), nullptr, false));
    }
    stream.remove_prefix(end == std::string_view::npos ? stream.size() : end + 2);
  }
  return objects;
}

}  // namespace lserve
