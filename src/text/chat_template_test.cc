#include "text/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>

#include "text/text_test_data.h"

namespace lserve {
namespace {

using testing::HasSubstr;

std::tm TestTime() {  // Monday, 9 March 2026, 12:30:05
  std::tm time{};
  time.tm_year = 126;
  time.tm_mon = 2;
  time.tm_mday = 9;
  time.tm_wday = 1;
  time.tm_yday = 67;
  time.tm_hour = 12;
  time.tm_min = 30;
  time.tm_sec = 5;
  return time;
}

std::string Join(const std::vector<TextRun>& runs) {
  std::string text;
  for (const TextRun& run : runs) {
    text += run.text;
  }
  return text;
}

Result<std::vector<TextRun>> RenderSource(const std::string& source,
                                          std::vector<ChatMessage> messages = {},
                                          bool add_generation_prompt = true) {
  const std::tm time = TestTime();
  Result<ChatTemplate> parsed = ChatTemplate::Parse(source, "<s>", "</s>");
  if (!parsed.ok()) {
    return parsed.status();
  }
  return parsed->Render(messages, add_generation_prompt, &time);
}

TEST(ChatTemplateTest, RendersAsJinja2) {
  std::map<std::string, std::string> sources;
  int checked = 0;
  int wrong = 0;
  for (const Json& c : ReadJsonLines(TextDataPath("template_cases.jsonl"))) {
    std::string source = c.value("source", "");
    if (c.contains("template")) {
      std::string& file = sources[c["template"]];
      if (file.empty()) {
        file = *ReadFile(TextDataPath("templates/" + c["template"].get<std::string>()));
      }
      source = file;
    }
    std::vector<ChatMessage> messages;
    for (const Json& message : c["messages"]) {
      messages.push_back({message["role"], message["content"]});
    }
    const auto runs = RenderSource(source, messages, c["add_generation_prompt"]);
    bool right = false;
    if (c.contains("error")) {
      right = !runs.ok() && runs.status().code() == StatusCode::kInvalidArgument &&
              (c["error"] == "" || runs.status().message() == c["error"]);
    } else {
      right = runs.ok() && Join(*runs) == c["text"];
    }
    if (!right && ++wrong <= 10) {
      ADD_FAILURE() << c.dump() << "\n got "
                    << (runs.ok() ? Json(Join(*runs)).dump() : runs.status().message());
    }
    ++checked;
  }
  EXPECT_EQ(wrong, 0) << "of " << checked;
  EXPECT_GE(checked, 900);
  EXPECT_GE(sources.size(), 9u);
}

TEST(ChatTemplateTest, TracksWhatUsersWrote) {
  const std::vector<ChatMessage> messages = {{"user", "  <|eot|> é<|eot|>x "}};
  const struct {
    const char* source;
    std::vector<TextRun> runs;
  } cases[] = {
      {"<|a|>{{ messages[0].content | trim }}<|b|>",
       {{"<|a|>", true}, {"<|eot|> é<|eot|>x", false}, {"<|b|>", true}}},
      {"{{ bos_token + messages[0]['content'][2:9] + '|>' }}",
       {{"<s>", true}, {"<|eot|>", false}, {"|>", true}}},
      {"{{ messages[0].content.split('é')[1].strip() | upper }}", {{"<|EOT|>X", false}}},
      {"{{ messages[0].content.replace('<|eot|>', '#') }}",
       {{"  ", false}, {"#", true}, {" é", false}, {"#", true}, {"x ", false}}},
      {"{{ '[x]'.replace('x', messages[0].role) }}", {{"[", true}, {"user", false}, {"]", true}}},
      {"{{ [messages[0].role, 'z'] | join('-') }}", {{"user", false}, {"-z", true}}},
      {"{% set x %}a{{ messages[0].role }}{% endset %}{{ x ~ 'b' }}",
       {{"a", true}, {"user", false}, {"b", true}}},
      {"{% macro f(t) %}<{{ t }}>{% endmacro %}{{ f(messages[0].role) }}",
       {{"<", true}, {"user", false}, {">", true}}},
      {"{{ messages[0].role | tojson }}", {{"\"", true}, {"user", false}, {"\"", true}}},
      {"{% for c in messages[0].role %}{{ c }}{% endfor %}", {{"user", false}}},
      {"{{ messages[0].role[::-1] }}{{ messages[0].role * 2 }}", {{"resuuseruser", false}}},
      {"{{ messages[0].role | map('upper') | list | first }}{{ messages[0].role.title() }}",
       {{"UUser", false}}},
  };
  for (const auto& c : cases) {
    const auto runs = RenderSource(c.source, messages);
    ASSERT_TRUE(runs.ok()) << c.source << ": " << runs.status().message();
    EXPECT_EQ(*runs, c.runs) << c.source;
  }
}

TEST(ChatTemplateTest, RepairsMessages) {
  const auto runs = RenderSource("{{ messages[0].content }}", {{"user", "a\xE2\x82"}});
  ASSERT_TRUE(runs.ok());
  EXPECT_EQ(Join(*runs), "a\uFFFD");
}

TEST(ChatTemplateTest, StopsRunawayTemplates) {
  const char* cases[] = {
      "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
      "{% set ns = namespace(s='x') %}{% for i in range(100) %}{% set ns.s = ns.s + ns.s %}"
      "{% endfor %}",
      "{% set ns = namespace(s=[1]) %}{% for i in range(1000) %}{% set ns.s = [ns.s] %}{% endfor "
      "%}",
      "{% set ns = namespace(s=[1]) %}{% for i in range(100) %}{% set ns.s = ns.s + ns.s %}"
      "{% endfor %}",
      "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
      "{{ 'xxxxxxxx' * 999999999 }}",
      "{{ range(999999999) | length }}",
      "{% set a = 'x' * 9999999 %}{{ a.replace('x', a) }}",
      "{% set a = 'x' * 9999999 %}{{ [a,a,a,a,a,a,a,a,a,a] | join(a) }}",
  };
  for (const char* source : cases) {
    const auto runs = RenderSource(source);
    ASSERT_FALSE(runs.ok()) << source;
    EXPECT_EQ(runs.status().code(), StatusCode::kResourceExhausted)
        << source << runs.status().message();
  }
  // A namespace that holds itself is no leak (the address sanitizer would tell).
  EXPECT_TRUE(RenderSource("{% set ns = namespace() %}{% set ns.a = ns %}ok").ok());
}

TEST(ChatTemplateTest, RefusesMalformedSource) {
  const struct {
    std::string source;
    StatusCode code;
    const char* message;
  } cases[] = {
      {"{% if x %}", StatusCode::kInvalidArgument, "endif"},
      {"a\n{{ 'x }}", StatusCode::kInvalidArgument, "line 2"},
      {"{{ x", StatusCode::kInvalidArgument, "not closed"},
      {"{# x", StatusCode::kInvalidArgument, "comment"},
      {"{{ (1 }}", StatusCode::kInvalidArgument, "'}'"},
      {"{{ 1 + }}", StatusCode::kInvalidArgument, "expression"},
      {"{{ x | nosuch }}", StatusCode::kUnimplemented, "nosuch"},
      {"{{ x is nosuch }}", StatusCode::kUnimplemented, "nosuch"},
      {"{% include 'x' %}", StatusCode::kUnimplemented, "include"},
      {"{% endif %}", StatusCode::kUnimplemented, "endif"},
      {"{% break %}", StatusCode::kInvalidArgument, "break"},
      {"{{ $ }}", StatusCode::kInvalidArgument, "'$'"},
      {"\xFF", StatusCode::kInvalidArgument, "UTF-8"},
      {"{{ 99999999999999999999 }}", StatusCode::kInvalidArgument, "too large"},
      {"{{ " + std::string(5000, '(') + "1" + std::string(5000, ')') + " }}",
       StatusCode::kResourceExhausted, "deeper"},
      {"{{ " + std::string(5000, '-') + "1 }}", StatusCode::kResourceExhausted, "deeper"},
  };
  for (const auto& c : cases) {
    const auto result = ChatTemplate::Parse(c.source, "", "");
    ASSERT_FALSE(result.ok()) << c.source.substr(0, 60);
    EXPECT_EQ(result.status().code(), c.code) << result.status().message();
    EXPECT_THAT(result.status().message(), HasSubstr(c.message));
  }
  std::string chain = "{{ 1";
  std::string nested;
  for (int i = 0; i < 5000; ++i) {
    chain += " + 1";
    nested += "{% if 1 %}";
  }
  EXPECT_EQ(ChatTemplate::Parse(chain + " }}", "", "").status().code(),
            StatusCode::kResourceExhausted);
  EXPECT_EQ(ChatTemplate::Parse(nested, "", "").status().code(), StatusCode::kResourceExhausted);
}

TEST(ChatTemplateTest, LoadsEveryFormOfTheFile) {
  namespace fs = std::filesystem;
  const fs::path dir = fs::path(testing::TempDir()) / "lserve_chat_template";
  fs::remove_all(dir);
  fs::create_directories(dir);
  const auto write = [&](const char* name, const std::string& text) {
    std::ofstream(dir / name) << text;
  };
  const auto rendered = [&]() -> std::string {
    const Result<ChatTemplate> loaded = ChatTemplate::Load(dir.string());
    return loaded.ok() ? Join(*loaded->Render({}, true)) : StatusCodeName(loaded.status().code());
  };
  const std::string not_found = StatusCodeName(StatusCode::kNotFound);
  EXPECT_EQ(rendered(), not_found);
  write("tokenizer_config.json", R"({"bos_token": "<b>"})");
  EXPECT_EQ(rendered(), not_found);
  write("tokenizer_config.json",
        R"({"bos_token": {"content": "<b>"}, "eos_token": "<e>",
            "chat_template": "{{ bos_token }}1{{ eos_token }}"})");
  EXPECT_EQ(rendered(), "<b>1<e>");
  write("tokenizer_config.json",
        R"({"bos_token": null, "chat_template": [{"name": "tool_use", "template": "t"},
            {"name": "default", "template": "d{{ bos_token }}"}]})");
  EXPECT_EQ(rendered(), "d");
  write("tokenizer_config.json", R"({"chat_template": [{"name": "rag", "template": "t"}]})");
  EXPECT_EQ(rendered(), not_found);
  write("tokenizer_config.json", R"({"bos_token": "<b>", "chat_template": "config"})");
  write("chat_template.jinja", "file{{ bos_token }}\n");
  EXPECT_EQ(rendered(), "file<b>");
}

}  // namespace
}  // namespace lserve
