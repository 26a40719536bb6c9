// Generation: one completion or chat request, from its body to the last byte of its answer. Lives
// in the coroutine that serves its connection, on that connection's strand.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/steady_timer.hpp>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "server/http.h"
#include "server/openai_response.h"
#include "server/service.h"

namespace lserve {

class Generation {
 public:
  Generation(Service& service, HttpExchange& exchange, bool chat);
  // A generation that ends early takes its request out of the engine.
  ~Generation();
  Generation(const Generation&) = delete;
  Generation& operator=(const Generation&) = delete;

  boost::asio::awaitable<void> Run();

 private:
  class Mailbox;
  struct Job;
  struct News;

  static void Prepare(Job& job);
  boost::asio::awaitable<void> Stream();
  boost::asio::awaitable<void> AnswerWhole();
  // Waits for news of the engine's, at most so long (no limit if 0 or less); true: the time is up.
  // May return early without news.
  boost::asio::awaitable<bool> Wait(double seconds);
  // Adds what the news say to the answer's facts; returns their text.
  void Account(const News& news);
  ApiError EndError() const;
  std::string StreamEvents(const std::vector<News>& news);
  void CancelEngineRequest();
  void Finish();

  Service& service_;
  HttpExchange& exchange_;
  boost::asio::steady_timer timer_;
  const double arrived_;
  std::shared_ptr<Job> job_;
  std::shared_ptr<Mailbox> mailbox_;
  AnswerHead head_;
  bool submitted_ = false;

  // Of the answer so far.
  bool role_sent_ = false;
  double last_token_ = 0;
  FinishedRequest facts_;
  Status failure_;  // what ended it, under kError
  bool overflowed_ = false;
};

}  // namespace lserve
