"""The openai package against a server over a stub model: openai_client_test.py STUB_SERVER."""

import subprocess
import sys
import time
import unittest
import urllib.request

import openai

ANSWER = "The code is 4711 👋🏽 好."
MODEL = "needle-7m"
MESSAGES = [{"role": "user", "content": "What is the code?"}]
STUB_SERVER = None


class OpenAiClientTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.process = subprocess.Popen(
            [STUB_SERVER, ANSWER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        cls.port = int(cls.process.stdout.readline())
        cls.url = f"http://127.0.0.1:{cls.port}"
        cls.client = openai.OpenAI(base_url=cls.url + "/v1", api_key="secret", max_retries=0,
                                   timeout=30)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.process.stdin.close()
        cls.process.wait(timeout=30)
        cls.process.stdout.close()
        assert cls.process.returncode == 0, cls.process.returncode

    def metric(self, name):
        request = urllib.request.Request(self.url + "/metrics",
                                         headers={"Authorization": "Bearer secret"})
        page = urllib.request.urlopen(request).read().decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines()
                   if line.startswith(name + "{") or line.startswith(name + " "))

    def test_models(self):
        self.assertEqual([model.id for model in self.client.models.list()],
                         [MODEL, MODEL + ":dense"])
        self.assertEqual(self.client.models.retrieve(MODEL + ":dense").owned_by, "lserve")

    def test_chat(self):
        answer = self.client.chat.completions.create(model=MODEL, messages=MESSAGES)
        self.assertEqual(answer.choices[0].message.content, ANSWER)
        self.assertEqual(answer.choices[0].message.role, "assistant")
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertEqual(answer.usage.total_tokens,
                         answer.usage.prompt_tokens + answer.usage.completion_tokens)
        self.assertGreater(answer.kv_bytes, 0)
        self.assertIn("prompt_ms", answer.timings)
        self.assertTrue(answer._request_id)

    def test_streamed_chat(self):
        stream = self.client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True})
        chunks = list(stream)
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        self.assertEqual("".join(c.choices[0].delta.content or "" for c in chunks if c.choices),
                         ANSWER)
        self.assertEqual(chunks[-2].choices[0].finish_reason, "stop")
        self.assertEqual(chunks[-1].choices, [])
        self.assertGreater(chunks[-1].usage.completion_tokens, 0)

    def test_completion(self):
        answer = self.client.completions.create(model=MODEL, prompt="Once", max_tokens=3)
        self.assertEqual(answer.choices[0].finish_reason, "length")
        self.assertTrue(ANSWER.startswith(answer.choices[0].text))
        stream = self.client.completions.create(model=MODEL, prompt=[5, 6, 7], max_tokens=100,
                                                stream=True)
        self.assertEqual("".join(chunk.choices[0].text for chunk in stream), ANSWER)

    def test_stop_and_ignored_fields(self):
        answer = self.client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stop=["👋🏽"], seed=3, user="me",
            metadata={"a": "b"}, store=False, service_tier="auto", reasoning_effort="low")
        self.assertEqual(answer.choices[0].message.content, "The code is 4711 ")

    def test_errors(self):
        create = self.client.chat.completions.create
        with self.assertRaises(openai.NotFoundError) as caught:
            create(model="gpt-4", messages=MESSAGES)
        self.assertEqual(caught.exception.code, "model_not_found")
        with self.assertRaises(openai.BadRequestError) as caught:
            create(model=MODEL, messages=MESSAGES, n=2)
        self.assertEqual(caught.exception.param, "n")
        with self.assertRaises(openai.BadRequestError) as caught:
            create(model=MODEL, messages=[{"role": "user", "content": "word " * 8000}])
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        self.assertIn("maximum context length is 4096 tokens", str(caught.exception))
        with self.assertRaises(openai.AuthenticationError) as caught:
            self.client.with_options(api_key="wrong").models.list()
        self.assertEqual(caught.exception.code, "invalid_api_key")
        self.assertTrue(caught.exception.request_id)

    def test_closed_stream_is_cancelled(self):
        name = "vllm:request_success_total"
        aborted = f'{name}{{engine="0",finished_reason="abort",model_name="{MODEL}"}}'
        stream = self.client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, extra_body={"ignore_eos": True})
        next(iter(stream))
        stream.close()
        for _ in range(500):
            if self.metric("vllm:num_requests_running") == 0:
                break
            time.sleep(0.01)
        request = urllib.request.Request(self.url + "/metrics",
                                         headers={"Authorization": "Bearer secret"})
        page = urllib.request.urlopen(request).read().decode()
        self.assertIn(aborted + " 1", page)


if __name__ == "__main__":
    STUB_SERVER = sys.argv.pop(1)
    unittest.main(verbosity=2)
